"""The images, built here and started: `make test-images`."""
