"""Speed, memory and accuracy on any GPU, in one command."""
