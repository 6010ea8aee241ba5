"""Prompts before anything is drawn: read as a person would read them, and held against the operator's rules.

`fold` undoes disguises that keep a word legible; `rules` finds the words of a list in what is left, whole words only;
`guard` adds CLIP's opinion of the text, and says what is to be done. `default.yaml` is the list that ships: plain
text, small, for an operator to read, to leave out or to add to.

Negative prompts are not looked at. They steer away from what they name, so "no blood, no nudity" is what a careful
person writes there, and refusing it would punish care; guidance below 1, where they would steer towards it, is refused
by `serving.admission`. What comes of a prompt after all is looked at by `serving.guard`.

To add: a category or a word: a list file; a disguise: `fold.fold`, or `rules.LOOKALIKES` where it must stay ambiguous,
and a case in the tests that finds it and one that does not.
"""
