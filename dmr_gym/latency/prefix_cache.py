"""How much of a prompt a server has already seen in this episode: what a switch of precision has to compute again.

A server keeps the keys and values of the prompts that it was sent and of the tokens that it generated. The environment
knows texts and token counts, no tokens: where texts part inside an earlier prompt, its tokens are counted in proportion
to its characters. For prompts that grow, as ALFWorld's do, nothing is estimated.
"""

from __future__ import annotations

from dmr_gym.types import Completion, Prompt, Request


def cached_prompt_tokens(prompt: Prompt, prompt_tokens: int, request: Request, completion: Completion) -> int:
    """Count the leading tokens of a prompt that a server has, from the last call of the episode that it answered.

    Args:
        prompt: the new prompt.
        prompt_tokens: its tokens.
        request: the server's last call.
        completion: its answer.

    Returns:
        Tokens in [0, prompt_tokens - 1]: the last token of a prompt is always computed, for its logits. Of the earlier
        answer all but its last token count, which was drawn and not yet read.
    """
    text, seen = prompt_text(prompt), prompt_text(request.prompt)
    # A chat template closes an answer and may drop its thoughts: what follows a chat prompt is not taken as known.
    answer = completion.text if isinstance(prompt, str) and isinstance(request.prompt, str) else ""
    shared = common_prefix(seen + answer, text)
    if shared < len(seen):
        cached = completion.prompt_tokens * shared // len(seen)
    else:
        read = max(completion.completion_tokens - 1, 0)
        cached = completion.prompt_tokens + (read * (shared - len(seen)) // len(answer) if answer else 0)
    return max(0, min(cached, prompt_tokens - 1))


def common_prefix(first: str, second: str) -> int:
    """Characters at the start of two texts that are the same."""
    if second.startswith(first):
        return len(first)
    low, high = 0, min(len(first), len(second))
    while low < high:  # the first `low` characters are the same, the first `high + 1` are not
        middle = (low + high + 1) // 2
        if first[low:middle] == second[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low


def prompt_text(prompt: Prompt) -> str:
    """A prompt as one text; of a chat, the turns without the template that renders them."""
    return prompt if isinstance(prompt, str) else "".join(f"{turn.role}\n{turn.content}\n" for turn in prompt)
