"""Flow and diffusion policies."""

POLICIES = {"denoise": "flows.recipe:Denoise"}
