"""From prompts to answers: prefill, decode, sample."""
