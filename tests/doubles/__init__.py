"""Clouds on loopback that speak the real wire protocols, and a proxy that fails as told."""
