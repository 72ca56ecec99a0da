"""Answers of a model here, batch by batch; of a multiple choice, the likeliest option."""

import dataclasses
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

from rlhfv_jax.data import images
from rlhfv_jax.data.chat import Template
from rlhfv_jax.decoding.batch import Answer, Prompt
from rlhfv_jax.decoding.engine import Engine
from rlhfv_jax.decoding.settings import GenerationSettings
from rlhfv_jax.errors import UserError
from rlhfv_jax.generation.answer_file import Line
from rlhfv_jax.generation.questions import Question
from rlhfv_jax.generation.sink import Sink, seed_of


def ask(
    engine: Engine,
    template: Template,
    settings: GenerationSettings,
    questions: Sequence[Question],
    model_id: str,
    sink: Sink,
) -> None:
    """Answers the questions in order; the images of the next batch are opened while one is decoded.

    What concerns one question alone (its image, its words) becomes its failure.
    """
    size = max(1, engine.batch_size // max(settings.num_beams, settings.num_answers))
    parts = [questions[i : i + size] for i in range(0, len(questions), size)]

    def prepare(part: Sequence[Question]) -> list[Prompt | UserError]:
        return [_prompt(engine, template, settings, question) for question in part]

    with ThreadPoolExecutor(1) as pool:
        waiting = [pool.submit(prepare, part) for part in parts[:1]]
        for i, part in enumerate(parts):
            prompts = waiting.pop().result()
            waiting += [pool.submit(prepare, later) for later in parts[i + 1 : i + 2]]
            free = [prompt for question, prompt in zip(part, prompts, strict=True) if not question.options]
            answers = _answered(engine, settings, free)
            for question, prompt in zip(part, prompts, strict=True):
                found = _likeliest(engine, template, question, prompt) if question.options else next(answers)
                if isinstance(found, UserError):
                    sink.failed(question, model_id, str(found))
                elif isinstance(found, dict):
                    sink.answered(question, model_id, [found], 0)
                else:
                    tokens = sum(len(answer.token_ids) for answer in found)
                    sink.answered(question, model_id, [_choice(answer) for answer in found], tokens)


def _prompt(engine: Engine, template: Template, settings: GenerationSettings, question: Question) -> Prompt | UserError:
    try:
        data = question.image_bytes()
        image = images.open_image(data) if data is not None else None
    except UserError as error:
        return error
    if question.options:  # they are read as training rows are, whatever opening answers are generated from
        template = dataclasses.replace(template, opening=None)
    return engine.prompt(question.text, image, template, seed=seed_of(settings.seed, question))


def _likeliest(engine: Engine, template: Template, question: Question, prompt: Prompt | UserError) -> Line | UserError:
    """The option with the highest mean log-prob a token, as SEED-Bench chooses; with what each of them has."""
    assert question.options
    if isinstance(prompt, UserError):
        return prompt
    try:
        [log_probs] = engine.score([prompt], [[template.continuation(option) for option in question.options.values()]])
    except UserError as error:
        return error.__cause__ if isinstance(error.__cause__, UserError) else error
    found = dict(zip(question.options, log_probs, strict=True))
    return {"text": question.options[max(found, key=lambda name: found[name])], "option_log_probs": found}


def _answered(
    engine: Engine, settings: GenerationSettings, prompts: Sequence[Prompt | UserError]
) -> Iterator[list[Answer] | UserError]:
    """The answers to each prompt, or why there are none; one that the engine refuses costs no other its answer."""
    good = [prompt for prompt in prompts if isinstance(prompt, Prompt)]
    try:
        found: list[list[Answer] | UserError] = [*engine.answer(good, settings)] if good else []
    except UserError:
        found = [_alone(engine, settings, prompt) for prompt in good]
    answers = iter(found)
    for prompt in prompts:
        yield next(answers) if isinstance(prompt, Prompt) else prompt


def _alone(engine: Engine, settings: GenerationSettings, prompt: Prompt) -> list[Answer] | UserError:
    try:
        return engine.answer([prompt], settings)[0]
    except UserError as error:
        # The cause says what is wrong, the error around it also which prompt of one.
        return error.__cause__ if isinstance(error.__cause__, UserError) else error


def _choice(answer: Answer) -> Line:
    choice: Line = {"text": answer.text, "token_ids": list(answer.token_ids), "finish_reason": answer.finish_reason}
    return choice if answer.log_probs is None else choice | {"log_probs": list(answer.log_probs)}
