"""The miniature's tokenizer: one piece a word, trained on the spot from the world's closed vocabulary."""

import io

import sentencepiece

from rlhfv_jax.data.chat import WORDS as TEMPLATE
from rlhfv_jax.data.tokenizer import MuffinTokenizer
from rlhfv_jax.miniature.captions import WORDS


def train_tokenizer() -> MuffinTokenizer:
    """A sentencepiece word model whose pieces are the world's words and the template's marks; the same every time."""
    marks = (TEMPLATE.between + TEMPLATE.end_of_turn).split()
    vocabulary = [*WORDS, *marks]
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([" ".join(vocabulary)]),
        model_writer=model,
        model_type="word",
        vocab_size=len(vocabulary) + 3,  # <unk>, <s>, </s>
        normalization_rule_name="identity",
        split_by_unicode_script=False,
        minloglevel=2,
    )
    return MuffinTokenizer(model.getvalue())
