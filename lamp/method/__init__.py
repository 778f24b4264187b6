"""The method of the paper in plain torch: layers, sampling, schedules. It knows no host."""
