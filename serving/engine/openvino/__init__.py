"""The OpenVINO GenAI backend (extra `openvino`). Only these modules import its packages."""
