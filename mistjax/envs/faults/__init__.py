"""Faults that begin in the middle of an episode, each in one place: a camera, the state, the
instruction, the scene, the actuators, or nowhere inside the robot (a push).

`inputs` and `words` say what a fault does to an input, as pure functions; `battery` names them and
draws one for each seed; `wrapper.Faulty` puts them into an environment.
"""
