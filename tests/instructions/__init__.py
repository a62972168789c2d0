"""What an event costs, in instructions of the processor: a number that a busy machine does not change."""
