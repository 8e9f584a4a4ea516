"""Chat templates for models that have none: Jinja, as `chat_template.jinja` of a model in Hugging Face layout.

Each ends an assistant's message with the tokenizer's end-of-text token, at which generation stops.
"""

from typing import Annotated

from pydantic import AfterValidator

from quantune.core.errors import listed, nearest

PLAIN = """\
{%- for message in messages %}{{ message['content'] }}
{%- if message['role'] == 'assistant' %}{{ eos_token }}{% else %}{{ '\\n' }}{% endif %}
{%- endfor %}"""
ALPACA = """\
{%- for message in messages %}
{%- if message['role'] == 'system' %}{{ message['content'] + '\\n\\n' }}
{%- elif message['role'] == 'user' %}{{ '### Instruction:\\n' + message['content'] + '\\n\\n' }}
{%- else %}{{ '### Response:\\n' + message['content'] + eos_token + '\\n\\n' }}{% endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ '### Response:\\n' }}{% endif %}"""
CHATML = """\
{%- for message in messages %}
{{- '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' }}
{%- if message['role'] == 'assistant' and eos_token != '<|im_end|>' %}{{ eos_token }}{% endif %}{{ '\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"""
VICUNA = """\
{%- for message in messages %}
{%- if message['role'] == 'system' %}{{ message['content'] + ' ' }}
{%- elif message['role'] == 'user' %}{{ 'USER: ' + message['content'] + ' ' }}
{%- else %}{{ 'ASSISTANT: ' + message['content'] + eos_token }}{% endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"""
TEMPLATES = {"alpaca": ALPACA, "chatml": CHATML, "plain": PLAIN, "vicuna": VICUNA}


def _known(value: str) -> str:
    """Refuse a text that is neither the name of a template nor a template."""
    if value not in TEMPLATES and "{{" not in value:
        hint = f"allowed: {listed(TEMPLATES)}, or the template itself, in Jinja{nearest(value, TEMPLATES)}"
        raise ValueError(f"'{value}' is not a chat template; {hint}")
    return value


ChatTemplate = Annotated[str, AfterValidator(_known)]


def text(template: str, begins: bool) -> str:
    """Return the Jinja text of a template that is given by its name, or as it is.

    Args:
        template: the name, or Jinja.
        begins: whether a text of the model begins with its token `bos_token`; a template of one's own says it itself.
    """
    begin = "{{- bos_token }}\n" if begins else ""
    return begin + TEMPLATES[template] if template in TEMPLATES else template
