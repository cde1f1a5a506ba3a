"""Flow and diffusion policies."""

POLICIES = {"denoise": "flows.policy:DenoisePolicy"}
