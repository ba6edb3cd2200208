"""Clouds on loopback that speak the real wire protocols to the real clients."""
