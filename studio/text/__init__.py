"""Language models: completions as rows, tokens as decisions."""

POLICIES = {
    "text": "studio.text.recipe:Text",
}
