"""A machine with the kernel's own virtual cameras, in which the real picamera2 and real V4L2 devices are tried."""
