"""A user's mistake is one line with cause and fix, and survives the way between processes."""

from __future__ import annotations

import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

import rectrain.errors
from rectrain.errors import DataError, RectrainError, without_credentials

PUBLIC = [getattr(rectrain.errors, name) for name in rectrain.errors.__all__]
TREE = [thing for thing in PUBLIC if isinstance(thing, type)]


@pytest.mark.parametrize("kind", TREE, ids=lambda kind: kind.__name__)
def test_every_error_is_a_rectrain_error_that_pickles(kind):
    error = kind(what="a", got=3, rule="must be 4", fix="set 4")
    again = pickle.loads(pickle.dumps(error))
    assert isinstance(error, RectrainError)
    assert type(again) is kind
    assert str(again) == str(error) == "a: got 3; must be 4; fix: set 4"
    assert (again.what, again.rule, again.fix) == ("a", "must be 4", "set 4")


def test_a_value_that_does_not_pickle_does_not_stop_the_error():
    error = DataError(what="a", got=lambda: None, rule="b", fix="c")
    assert "lambda" in str(pickle.loads(pickle.dumps(error)))


def test_newlines_are_folded_and_a_long_value_is_shortened():
    text = str(DataError(what="file\nx", got="y\n" * 500, rule="one\r\n\tline", fix="shorten it"))
    assert "\n" not in text and "\r" not in text
    assert text.startswith("file x: got y y") and text.endswith("…; one line; fix: shorten it")
    assert len(text) < 260


def test_parts_are_given_by_name_only():
    with pytest.raises(TypeError):
        DataError("what", "got", "rule", "fix")


def test_passwords_in_uris_are_not_shown():
    uri = "s3://key:secret@bucket/runs"
    error = DataError(what=f"input {uri}", got=OSError(f"no {uri}"), rule="r", fix="f")
    assert str(error) == "input s3://bucket/runs: got no s3://bucket/runs; r; fix: f"
    long = DataError(what="input", got="x" * 190 + uri, rule="r", fix="f")
    assert "secret" not in str(long) and "key" not in str(long)


# AWS secrets are 40 characters of base64.
BASE64 = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"


@given(st.text(BASE64, max_size=40))
def test_no_secret_is_shown_whatever_its_characters(secret):
    error = DataError(what="output", got=f"s3://AKIA:{secret}@bucket/a", rule="r", fix="f")
    assert str(error) == "output: got s3://bucket/a; r; fix: f"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("s3://AKIA:a/b+c/d=@bucket/x@2/y", "s3://bucket/x@2/y"),
        ("http://me:p@ss@host", "http://host"),
        ("s3://token@bucket", "s3://bucket"),
        ("('s3://a', 's3://k:s/e@b')", "('s3://a', 's3://b')"),
        ("s3://a,s3://k:s/e@b", "s3://a,s3://b"),
        ("s3://bucket/a@b:c@d", "s3://bucket/a@b:c@d"),
        ("http://host:5000/x and me@host", "http://host:5000/x and me@host"),
        ("file:///a:b@c", "file:///a:b@c"),
    ],
)
def test_only_credentials_are_left_out(text, shown):
    assert without_credentials(text) == shown
