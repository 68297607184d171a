"""What the tests of tools and of structured output ask for: always an end within few tokens."""

WEATHER = {
    "type": "object",
    "properties": {
        "city": {"type": "string", "enum": ["Paris", "Berlin", "Lisbon"]},
        "days": {"type": "integer", "minimum": 1, "maximum": 9},
        "metric": {"type": "boolean"},
    },
    "required": ["city", "days", "metric"],
    "additionalProperties": False,
}
COUNT = {
    "type": "object",
    "properties": {"list": {"type": "array", "items": {"enum": [1, 2]}, "maxItems": 3}},
    "required": ["list"],
    "additionalProperties": False,
}
PARAMETERS = {"weather": WEATHER, "count": COUNT}
TOOLS = [
    {"type": "function", "function": {"name": name, "description": name, "parameters": schema}}
    for name, schema in PARAMETERS.items()
]
# A random model would think to the end of its context.
NO_THINKING = {"chat_template_kwargs": {"enable_thinking": False, "thinking": False}}
