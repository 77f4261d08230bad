"""Many machines: replicas of another engine on Ray Serve, behind one `Engine`."""
