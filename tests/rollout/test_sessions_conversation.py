"""From messages to tokens: what was sampled is kept as it is, continued where the messages go on, and trained on once."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from miles_async.models import builtin
from miles_async.rollout.sessions.chat import ChatMessage, Messages, normalized
from miles_async.rollout.sessions.conversation import Begun, Conversation
from miles_async.text.tokenizer import Tokenizer

# as Qwen's: a message ends with the end of sequence, tool calls are JSON in tags
TAGGED = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}"
    "{% for c in m.tool_calls or [] %}<tool_call>{{ {'name': c.function.name, 'arguments': c.function.arguments} | tojson }}"
    "</tool_call>{% endfor %}{{ eos_token }}\n{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
)
STRIPPED = TAGGED.replace("m.content }}", "m.content | trim }}")
# what an assistant thought is left out once it is no longer the last one
FORGETTING = TAGGED.replace("m.content }}", "m.content if loop.last else m.content.split('</think>')[-1] }}")


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    directory = tmp_path_factory.mktemp("words")
    builtin.make_model("builtin:words", directory, seed=0)
    return Tokenizer(directory)


def with_template(tokenizer: Tokenizer, template: str, tmp_path: Path) -> Tokenizer:
    path = tmp_path / "template.jinja"
    path.write_text(template)
    return tokenizer.for_chats(path, {})


class Agent:
    """Speaks in a conversation; its policy says what the test wants said."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer, self.conversation = tokenizer, Conversation(tokenizer)
        self.given: list[list[int]] = []  # what the policy was given to continue, at each turn

    def begin(self, messages: Messages, tools: Any = ()) -> Begun:
        begun = self.conversation.begin(messages, tools)
        self.given.append(begun.branch.trajectory.input_ids)
        return begun

    def end(
        self, begun: Begun, text: str, message: dict[str, Any] | None = None, *, version: int = 0
    ) -> dict[str, Any]:
        """The policy says ``text`` (with "<eos>" where it ends by itself); returns the assistant's message."""
        tokens = self.tokenizer.encode(text)
        begun.branch.trajectory.sampled(tokens, [-0.5] * len(tokens), [version] * len(tokens))
        message = message or {"role": "assistant", "content": self.tokenizer.decode(tokens)}
        self.conversation.finish(begun, message, tokens, "stop")
        return message

    def turn(self, messages: Messages, text: str, **options: Any) -> Messages:
        """The messages with the policy's answer to them."""
        return [*messages, self.end(self.begin(messages), text, **options)]

    def sequences(self) -> list[str]:
        """Each branch: its prompt, and behind a bar its response, what is not trained on in brackets."""
        shown = []
        for branch in self.conversation.branches:
            trajectory, text = branch.trajectory, ""
            for token, mask in zip(trajectory.tokens, trajectory.mask, strict=True):
                piece = self.tokenizer.decode([token], skip_special_tokens=False)
                text += piece if mask else f"[{piece}]"
            prompt = self.tokenizer.decode(trajectory.prompt, skip_special_tokens=False)
            shown.append(f"{prompt}|{text.replace('][', '')}")
        return shown


def user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def test_a_turn_that_goes_on_keeps_its_tokens_and_gets_only_what_the_template_puts_behind_them(
    words: Tokenizer,
) -> None:
    agent = Agent(words)
    said = agent.turn([user("2+2?")], "four<eos>")
    said = agent.turn([*said, user("no")], "4")  # cut off: it does not end by itself
    agent.turn([*said, user("yes")], "ok<eos>")
    assert agent.sequences() == [
        "user: 2+2?\nassistant: |four<eos>[\nuser: no\nassistant: ]4[\nuser: yes\nassistant: ]ok<eos>"
    ]
    assert agent.given[1] == words.encode("user: 2+2?\nassistant: four<eos>\nuser: no\nassistant: ")


def test_an_end_that_the_policy_wrote_is_not_repeated_and_one_that_it_did_not_is_put_there(
    words: Tokenizer, tmp_path: Path
) -> None:
    agent = Agent(with_template(words, TAGGED, tmp_path))
    said = agent.turn([user("a")], "b<eos>")
    said = agent.turn([*said, user("c")], "d")
    agent.turn([*said, user("e")], "f<eos>")
    assert agent.sequences() == [
        "<user>a<eos>\n<assistant>|b<eos>[\n<user>c<eos>\n<assistant>]d[<eos>\n<user>e<eos>\n<assistant>]f<eos>"
    ]


def test_tokens_that_their_text_would_not_give_again_are_kept(words: Tokenizer) -> None:
    agent = Agent(words)
    begun = agent.begin([user("a")])
    spelt = [token for letter in "<eos>" for token in words.encode(letter)]  # together they are the text of one token
    assert words.encode(words.decode(spelt)) != spelt
    begun.branch.trajectory.sampled(spelt, [-1.0] * 5, [0] * 5)
    message = {"role": "assistant", "content": words.decode(spelt)}
    agent.conversation.finish(begun, message, spelt, "stop")
    agent.turn([user("a"), message, user("c")], "d")
    assert agent.given[1][len(agent.given[0]) :][:5] == spelt
    assert len(agent.conversation.branches) == 1


def test_a_rewritten_history_is_a_branch_with_a_prompt_of_its_own(words: Tokenizer) -> None:
    agent = Agent(words)
    said = agent.turn([user("a")], "b<eos>")
    agent.turn([user("a"), {"role": "assistant", "content": "B"}, user("c")], "d<eos>")
    agent.turn([*said, user("c")], "e<eos>")  # the first one goes on all the same
    assert agent.sequences() == [
        "user: a\nassistant: |b<eos>[\nuser: c\nassistant: ]e<eos>",
        "user: a\nassistant: B\nuser: c\nassistant: |d<eos>",
    ]


def test_other_tools_are_another_conversation(words: Tokenizer, tmp_path: Path) -> None:
    agent = Agent(with_template(words, TAGGED, tmp_path))
    message = agent.end(agent.begin([user("a")], [{"name": "f"}]), "b<eos>")
    agent.end(agent.begin([user("a"), message, user("c")], []), "d<eos>")
    assert len(agent.conversation.branches) == 2


def test_two_ways_to_go_on_share_the_tokens_and_train_them_once(words: Tokenizer) -> None:
    agent = Agent(words)
    said = agent.turn([user("a")], "b<eos>")
    agent.turn([*said, user("c")], "d<eos>")
    agent.turn([*said, user("e")], "f<eos>")
    assert agent.sequences() == [
        "user: a\nassistant: |b<eos>[\nuser: c\nassistant: ]d<eos>",
        "user: a\nassistant: b<eos>\nuser: e\nassistant: |f<eos>",
    ]
    first, second = agent.conversation.branches
    assert (first.length, second.length) == (len(first.trajectory.tokens), len(second.trajectory.tokens) + 22)


def test_two_requests_at_once_do_not_write_into_one_sequence(words: Tokenizer) -> None:
    agent = Agent(words)
    said = agent.turn([user("a")], "b<eos>")
    first, second = agent.begin([*said, user("c")]), agent.begin([*said, user("c")])
    agent.end(second, "2<eos>")
    agent.end(first, "1<eos>")
    assert agent.sequences() == [
        "user: a\nassistant: |b<eos>[\nuser: c\nassistant: ]1<eos>",
        "user: a\nassistant: b<eos>\nuser: c\nassistant: |2<eos>",
    ]


def test_two_requests_at_once_share_no_sequence_where_nothing_is_told_between_them(
    words: Tokenizer, tmp_path: Path
) -> None:
    agent = Agent(with_template(words, "{% for m in messages %}{{ m.content }}{% endfor %}", tmp_path))
    said = agent.turn([user("a")], "b<eos>")
    first, second = agent.begin(said), agent.begin(said)
    agent.end(second, "2<eos>")
    agent.end(first, "1<eos>")
    assert agent.sequences() == ["a|b<eos>1<eos>", "ab<eos>|2<eos>"]


def test_a_turn_that_comes_to_nothing_leaves_no_trace(words: Tokenizer) -> None:
    agent = Agent(words)
    said = agent.turn([user("a")], "b<eos>")
    for messages in ([*said, user("c")], [user("x")]):
        begun = agent.begin(messages)
        begun.branch.trajectory.sampled([5, 6], [-1.0, -1.0], [0, 0])  # what was there when the engine failed
        agent.conversation.abandon(begun)
    assert agent.sequences() == ["user: a\nassistant: |b<eos>"]
    agent.turn([*said, user("c")], "d<eos>")
    assert agent.sequences() == ["user: a\nassistant: |b<eos>[\nuser: c\nassistant: ]d<eos>"]


def test_a_template_that_strips_an_answer_does_not_break_the_sequence(words: Tokenizer, tmp_path: Path) -> None:
    agent = Agent(with_template(words, STRIPPED, tmp_path))
    said = agent.turn([user("a")], " b \n<eos>")
    agent.turn([*said, user("c")], "d<eos>")
    assert agent.sequences() == ["<user>a<eos>\n<assistant>| b \n<eos>[\n<user>c<eos>\n<assistant>]d<eos>"]


def test_a_template_that_rewrites_what_was_said_makes_a_branch(words: Tokenizer, tmp_path: Path) -> None:
    agent = Agent(with_template(words, FORGETTING, tmp_path))
    said = agent.turn([user("a")], "<think>hm</think>b<eos>")
    agent.turn([*said, user("c")], "d<eos>")
    assert agent.sequences() == [
        "<user>a<eos>\n<assistant>|<think>hm</think>b<eos>",
        "<user>a<eos>\n<assistant>b<eos>\n<user>c<eos>\n<assistant>|d<eos>",
    ]


def test_a_stop_string_is_in_the_tokens_and_not_in_the_message(words: Tokenizer, tmp_path: Path) -> None:
    agent = Agent(with_template(words, TAGGED, tmp_path))
    message = {"role": "assistant", "content": "b"}
    said = agent.turn([user("a")], "bSTOP", message=message)
    agent.turn([*said, user("c")], "d<eos>")
    assert agent.sequences() == ["<user>a<eos>\n<assistant>|bSTOP[<eos>\n<user>c<eos>\n<assistant>]d<eos>"]


def test_a_template_that_rewrites_what_stands_before_makes_a_branch(words: Tokenizer, tmp_path: Path) -> None:
    agent = Agent(with_template(words, "{{ messages | length }}" + TAGGED, tmp_path))
    said = agent.turn([user("a")], "b<eos>")
    agent.turn([*said, user("c")], "d<eos>")
    assert agent.sequences() == [
        "1<user>a<eos>\n<assistant>|b<eos>",
        "3<user>a<eos>\n<assistant>b<eos>\n<user>c<eos>\n<assistant>|d<eos>",
    ]


@pytest.mark.parametrize("spaces", ["", "  "])
def test_tool_calls_go_on_from_the_tokens_however_the_policy_spelt_them(
    words: Tokenizer, tmp_path: Path, spaces: str
) -> None:
    agent = Agent(with_template(words, TAGGED, tmp_path))
    written = f'ok<tool_call>{{"name": {spaces}"f", "arguments": {{"x": 1}}}}</tool_call><eos>'
    # what a client sends back: arguments as a text
    call = {"id": "call_0", "type": "function", "function": {"name": "f", "arguments": '{"x":1}'}}
    sent = {"role": "assistant", "content": "ok", "refusal": None, "tool_calls": [call]}
    message = normalized([msgspec.convert(sent, ChatMessage)])[0]
    said = agent.turn([user("a")], written, message=message)
    agent.turn([*said, {"role": "tool", "content": "7", "tool_call_id": "call_0"}], "seven<eos>")
    assert agent.sequences() == [f"<user>a<eos>\n<assistant>|{written}[\n<tool>7<eos>\n<assistant>]seven<eos>"]


Move = tuple[str, int, str]
moves = st.lists(
    st.tuples(
        st.sampled_from(["go on", "go back", "again", "rewrite", "anew", "fail"]),
        st.integers(0, 5),
        st.text("ab ?>", max_size=3),
    ),
    max_size=12,
)


@given(moves=moves, seed=st.integers(0, 10**6), template=st.sampled_from(["own", TAGGED, STRIPPED, FORGETTING]))
def test_whatever_an_agent_does_every_sampled_token_is_trained_once_behind_what_it_was_sampled_from(
    words: Tokenizer, tmp_path_factory: pytest.TempPathFactory, moves: list[Move], seed: int, template: str
) -> None:
    tokenizer = words
    if template != "own":
        tokenizer = with_template(words, template, tmp_path_factory.mktemp("t"))
    rng, agent = random.Random(seed), Agent(tokenizer)
    histories: list[Messages] = [[user("a")]]
    drawn: Counter[tuple[int, ...]] = Counter()  # prefix and token, of every token that was answered
    for kind, place, text in moves:
        history = histories[place % len(histories)]
        messages = [*history, user(text)]
        if kind == "go on":
            messages = [*histories[-1], user(text)]
        elif kind == "again":
            messages = history
        elif kind == "rewrite":
            messages = [{**message, "content": message["content"] + "!"} for message in messages]
        elif kind == "anew":
            messages = [user(text)]
        begun = agent.begin(messages)
        tokens = [rng.randrange(words.vocab_size) for _ in range(rng.randint(1, 3))]
        begun.branch.trajectory.sampled(tokens, [-float(len(drawn))] * len(tokens), [0] * len(tokens))
        if kind == "fail":
            agent.conversation.abandon(begun)
            continue
        message = {"role": "assistant", "content": tokenizer.decode(tokens)}
        agent.conversation.finish(begun, message, tokens, "stop")
        histories.append([*messages, message])
        for i in range(len(tokens)):
            drawn[(*agent.given[-1], *tokens[: i + 1])] += 1
    trained: Counter[tuple[int, ...]] = Counter()
    for branch in agent.conversation.branches:
        trajectory = branch.trajectory
        sizes = {len(part) for part in (trajectory.tokens, trajectory.logprobs, trajectory.mask, trajectory.versions)}
        assert len(sizes) == 1
        for i, mask in enumerate(trajectory.mask):
            if mask:
                trained[(*trajectory.prompt, *trajectory.tokens[: i + 1])] += 1
    assert trained == drawn
