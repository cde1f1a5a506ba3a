"""Flow and diffusion policies."""

POLICIES = {
    "denoise": "flows.recipe:Denoise",
    "match": "flows.recipe:Match",
    "gaussian": "flows.control.recipe:Gaussian",
    "policyflow": "flows.control.recipe:PolicyFlow",
    "fpo": "flows.control.baselines:FPO",
    "dppo": "flows.control.baselines:DPPO",
    "reinflow": "flows.control.baselines:ReinFlow",
}
