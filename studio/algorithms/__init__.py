"""The table of objectives by name. Strings only: a class is imported when it is used."""

ALGORITHMS: dict[str, str] = {
    "cispo": "studio.algorithms.cispo:CISPO",
    "dapo": "studio.algorithms.dapo:DAPO",
    "dr_grpo": "studio.algorithms.dr_grpo:DrGRPO",
    "grpo": "studio.algorithms.grpo:GRPO",
    "gspo": "studio.algorithms.gspo:GSPO",
    "ppo": "studio.algorithms.ppo:PPO",
    "reinforce++": "studio.algorithms.reinforce_pp:ReinforcePP",
    "rloo": "studio.algorithms.rloo:RLOO",
    "alignprop": "flows.backprop:AlignProp",
    "awm": "flows.awm:AWM",
    "dance_grpo": "flows.dance_grpo:DanceGRPO",
    "ddpo": "flows.ddpo:DDPO",
    "draft": "flows.backprop:DRaFT",
    "flow_dppo": "flows.dppo:FlowDPPO",
    "flow_grpo": "flows.flow_grpo:FlowGRPO",
    "grpo_guard": "flows.guard:GRPOGuard",
    "mix_grpo": "flows.mix_grpo:MixGRPO",
    "nft": "flows.nft:DiffusionNFT",
    "policyflow": "flows.policyflow:PolicyFlow",
    "refl": "flows.backprop:ReFL",
}
