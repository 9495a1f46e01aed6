"""Where a reader works: with a GPU, as far as one without can tell; not after a fork."""

import importlib
import os

import numpy as np
import pytest
from conftest import draw, record, refusal

from support.keras2 import tf

# of the TensorFlow that keras2 has set up
kernels = importlib.import_module('tensorflow.python.framework.kernels')
op_callbacks = importlib.import_module('tensorflow.python.framework.op_callbacks')


def gpu_kernels(operation):
    """For each kernel of an operation on GPUs its constraints, {attribute: allowed types}."""
    registered = kernels.get_registered_kernels_for_op(operation).kernel
    return [
        {each.name: types for each in kernel.constraint if (types := each.allowed_values.list.type)}
        for kernel in registered
        if kernel.device_type in ('GPU', 'DEFAULT')
    ]


@pytest.fixture
def operations():
    """{operation: list of its attributes, {name: value}} of those with floats, as they are made."""
    made = {}

    def note(operation, inputs, attributes, outputs, op_name=None, graph=None):
        if any(each.dtype.is_floating for each in [*inputs, *outputs] if hasattr(each, 'dtype')):
            found = zip(attributes[::2], attributes[1::2], strict=True)
            # in graphs a type is wrapped
            types = {name: getattr(value, 'type', value) for name, value in found}
            made.setdefault(operation, []).append(types)

    op_callbacks.add_op_callback(note)
    yield made
    op_callbacks.remove_op_callback(note)


@pytest.mark.parametrize('precision', ['float32', 'bfloat16'])
def test_every_operation_on_floats_has_a_kernel_for_gpus(script, small_bert, operations, precision):
    """Reading, writing, voting, training; TensorFlow would copy to the CPU and back, or refuse."""
    if not gpu_kernels('MatMul'):
        pytest.skip('this TensorFlow has no kernels for GPUs')
    model, tokenizer = small_bert
    draw(model, 0)
    constants = script.Constants(precision=precision, mode='generative', topk=2, max_a_len=4)
    reader = script.ReadingComprehension(model, tokenizer, constants)
    [answer] = reader.answers([script.asked(record('a'))])
    assert answer.text  # or nothing was written
    reading = {*operations}
    trainer = script.build_trainer(model, constants)
    batch = np.int32([[2, 9, 3, 9, 3]]), np.int32([[0, 0, 0, 1, 1]])  # token_ids, segment_ids
    tf.function(trainer.train_step)(batch)
    assert 'TopKV2' in reading and 'MatMul' in reading and {*operations} > reading
    lacking = set()
    for operation, every in operations.items():
        allowed = gpu_kernels(operation)
        for attributes in every:
            fits = any(
                all(attributes.get(name) in types for name, types in kernel.items())
                for kernel in allowed
            )
            if not fits and kernels.get_registered_kernels_for_op(operation).kernel:
                lacking.add((operation, str(attributes)[:200]))
    assert not lacking


@pytest.mark.skipif(not hasattr(os, 'fork'), reason='no fork here')
def test_reader_that_was_loaded_before_a_fork_says_so(script, small_bert):
    """It would wait for ever for TensorFlow's threads, as in servers and pools of processes."""
    reader = script.ReadingComprehension(*small_bert, script.Constants())
    asked = '谁', ['人口在北京']
    reader.answer(*asked)
    output, entry = os.pipe()
    child = os.fork()
    if not child:
        try:
            os.write(entry, refusal(reader.answer, *asked).encode())
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    os.close(entry)
    with open(output, encoding='utf-8') as file:
        assert file.read().startswith('a reader was loaded before this process was forked; load')
