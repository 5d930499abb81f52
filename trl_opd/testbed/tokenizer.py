"""The testbed's tokenizer: one token for each printable ASCII character and the newline."""

from __future__ import annotations

import string

from tokenizers import AddedToken, Tokenizer, decoders, models
from transformers import PreTrainedTokenizerFast

PAD = "«pad»"
END = "«end»"
UNKNOWN = "«unk»"
ROLES = {role: f"«{role}»" for role in ("system", "user", "assistant")}
CHARACTERS = "\n" + "".join(map(chr, range(32, 127)))
GENERATION_HEADER = ROLES["assistant"]

# A turn is its role's token, its text and the end token: no part of a printable ASCII text can be mistaken for either,
# because it holds no guillemet. `enable_thinking` and other variables are accepted and make no difference.
CHAT_TEMPLATE = string.Template(
    "{%- for message in messages -%}"
    "{%- if message['role'] not in $roles -%}"
    "{{- raise_exception('The chat template knows the roles $names, not ' + message['role'] + '.') -}}"
    "{%- endif -%}"
    "{{- '«' + message['role'] + '»' + message['content'] + '$end' -}}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '$header' -}}{%- endif -%}"
).substitute(end=END, header=GENERATION_HEADER, roles=list(ROLES), names=", ".join(ROLES))


def build_tokenizer() -> PreTrainedTokenizerFast:
    """The tokenizer with its chat template.

    Every printable ASCII text with newlines survives `decode(encode(text))` unchanged; any other character becomes the
    unknown token. The end token ends every turn and is the end-of-sequence token; padding has a token of its own.
    """
    special = [PAD, END, UNKNOWN, *ROLES.values()]
    vocabulary = {token: index for index, token in enumerate([*special, *CHARACTERS])}
    # Byte-pair encoding without merges is the one model of the library that splits a text into its characters.
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token=UNKNOWN))
    backend.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    backend.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token=PAD,
        eos_token=END,
        unk_token=UNKNOWN,
        additional_special_tokens=list(ROLES.values()),
        padding_side="left",
        clean_up_tokenization_spaces=False,
        chat_template=CHAT_TEMPLATE,
    )
