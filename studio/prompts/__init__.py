"""Where prompts come from."""

PROMPTS = {
    "file": "studio.prompts.source:FilePrompts",
    "lettering": "studio.prompts.lettering:LetteringPrompts",
    "geneval": "studio.prompts.geneval:GenEvalPrompts",
    "edit": "studio.prompts.edit:EditPrompts",
    "dataset": "studio.prompts.dataset:DatasetPrompts",
    "tasks": "studio.prompts.tasks:TaskPrompts",
    "priority": "studio.prompts.priority:PriorityPrompts",
    "windows": "studio.prompts.windows:WindowPrompts",
    "budgets": "studio.prompts.budgets:BudgetPrompts",
    "shapes": "flows.shapes.prompts:ShapesPrompts",
}
