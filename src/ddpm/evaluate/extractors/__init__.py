"""From images to the features and class probabilities in which samples are compared with data."""

from ddpm.evaluate.extractors.extractor import Extractor as Extractor
from ddpm.evaluate.extractors.extractor import Reading as Reading
from ddpm.evaluate.extractors.table import by_name as by_name
