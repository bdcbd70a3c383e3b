"""SigLIP: its vision tower, bare or in a whole SigLIP."""

from vlvm_jax.families._tower import TowerFamily


class Family(TowerFamily):
    name = "siglip"
    model_types = ("siglip", "siglip_vision_model")
    architecture = "SiglipVisionModel"
