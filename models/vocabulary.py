r"""The LRM's vocabulary: a small byte-level BPE of its own, extended by one token per code of each level.

Notable: text is split at spaces and line breaks only, so that ` 100%` or `\nwatch_next:` is one token once it is
frequent; code tokens cut the text, so the tokens of a prompt are a prefix of the tokens of the prompt continued.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor

from models.semantic_id import SemanticIdSpace, code_token

PAD, EOS = "<pad>", "<eos>"


def code_tokens(space: SemanticIdSpace) -> list[str]:
    """Return every code's token, level by level."""
    return [
        code_token(level, code)
        for level, size in enumerate(space.level_sizes)
        for code in range(size)
    ]


def train_tokenizer(
    texts: Iterable[str], space: SemanticIdSpace, *, vocabulary_size: int
) -> Tokenizer:
    """Train the BPE on `texts` and extend it by the code tokens; `vocabulary_size` does not count those."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r"\n\S*| ?\S+|\s"), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=vocabulary_size,
            special_tokens=[PAD, EOS],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    extend(tokenizer, space)
    return tokenizer


def extend(tokenizer: Tokenizer, space: SemanticIdSpace) -> int:
    """Add the code tokens that are missing and return how many were."""
    added: int = tokenizer.add_special_tokens(
        [AddedToken(token, special=True, normalized=False) for token in code_tokens(space)]
    )
    return added


def level_token_ids(tokenizer: Tokenizer, space: SemanticIdSpace) -> tuple[Tensor, ...]:
    """Return, per level, the token id of each code.

    Shapes: a tuple of L tensors [K_level] int64.

    Raises:
        ValueError: the tokenizer lacks a code of this space.
    """
    levels = []
    for level, size in enumerate(space.level_sizes):
        ids = [tokenizer.token_to_id(code_token(level, code)) for code in range(size)]
        if None in ids:
            missing = code_token(level, ids.index(None))
            raise ValueError(
                f"the tokenizer has no token {missing}; extend it by this codebook's codes"
            )
        levels.append(torch.tensor(ids, dtype=torch.int64))
    return tuple(levels)
