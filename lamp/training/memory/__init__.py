"""The estimate of training memory."""
