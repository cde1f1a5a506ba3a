"""Flow and diffusion policies."""

POLICIES = {"denoise": "flows.recipe:Denoise", "match": "flows.recipe:Match"}
