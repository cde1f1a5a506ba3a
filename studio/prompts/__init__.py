"""Where prompts come from."""

PROMPTS = {
    "file": "studio.prompts.source:FilePrompts",
    "shapes": "flows.shapes.prompts:ShapesPrompts",
}
