"""TFDS builders: preference data and VQAv2 as array_record, written and read without TensorFlow."""
