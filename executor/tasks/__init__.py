"""Values: what calls, pools and resources are. Pure."""
