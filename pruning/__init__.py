"""Which weights remain: sites, gates, scores, budgets, slicing and the formats that others can load."""

POLICIES = {"gated": "pruning.recipe:Gated"}
ALGORITHMS = {  # what the one loop trains
    "distill": "pruning.heal:Distill",
    "ecodiff": "pruning.ecodiff:EcoDiff",
    "end_to_end": "pruning.ecodiff:EndToEnd",
}
CRITERIA = {
    "random": "pruning.scores:Random",
    "magnitude": "pruning.scores:Magnitude",
    "wanda": "pruning.scores:Wanda",
    "taylor": "pruning.scores:Taylor",
    "obs": "pruning.scores:OBS",
    "block_influence": "pruning.blocks:BlockInfluence",
    "ecodiff": "pruning.ecodiff:EcoDiff",
    "end_to_end": "pruning.ecodiff:EndToEnd",
}
