"""Makes tests/hugging_face/, what Hugging Face's transformers writes and computes.

    python -m venv hf && hf/bin/pip install torch==2.13.0 transformers==5.24.0
    hf/bin/python tests/make_hugging_face.py model.safetensors
    python -m venv tf && tf/bin/pip install tensorflow==2.18.0 tf-keras==2.18.0 transformers==4.46.3
    tf/bin/python tests/make_hugging_face.py tf_model.h5    # after the other one

A small random BERT in both formats, and what it says of some tokens: the tests need neither torch
nor transformers.
"""

import json
import pathlib
import shutil
import sys
import tempfile

import numpy as np
import transformers

FOLDER = pathlib.Path(__file__).resolve().parent / 'hugging_face'
VERSIONS = FOLDER / 'versions.json'
SIZES = {
    'vocab_size': 58, 'hidden_size': 16, 'num_hidden_layers': 2, 'num_attention_heads': 2,
    'intermediate_size': 32, 'max_position_embeddings': 128, 'initializer_range': 0.3,
    'hidden_act': 'gelu',
}  # fmt: skip

if sys.argv[1] == 'model.safetensors':
    import torch

    torch.manual_seed(0)
    model = transformers.BertForPreTraining(transformers.BertConfig(**SIZES)).eval()
    for parameter in model.parameters():  # biases too, and norms that are not 1
        torch.nn.init.normal_(parameter, parameter.mean().item(), 0.3)
    model.save_pretrained(FOLDER)
    token_ids = torch.tensor(np.random.default_rng(0).integers(1, 58, [3, 20]))
    with torch.no_grad():  # all of segment 0, where each token sees each, as under UniLM's mask
        said = model(token_ids, output_hidden_states=True)
    hidden, logits = said.hidden_states[-1], said.prediction_logits
    np.savez_compressed(FOLDER / 'said.npz', token_ids=token_ids, hidden=hidden, logits=logits)
else:
    model = transformers.TFBertForPreTraining.from_pretrained(FOLDER, use_safetensors=True)
    with tempfile.TemporaryDirectory() as folder:  # it would write a config.json of its own
        model.save_pretrained(folder, safe_serialization=False)
        shutil.copy(pathlib.Path(folder, sys.argv[1]), FOLDER)
versions = json.loads(VERSIONS.read_text()) if VERSIONS.exists() else {}
versions[sys.argv[1]] = f'transformers {transformers.__version__}'
VERSIONS.write_text(json.dumps(versions, indent=4))
