"""Invariant learning over several domains: EVIL's masks, base objectives, DomainBed's protocol."""
