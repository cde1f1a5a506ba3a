"""Language models: completions as rows, tokens as decisions."""

POLICIES = {
    "text": "studio.text.recipe:Text",
    "masked_text": "studio.text.masked_recipe:MaskedText",
}
