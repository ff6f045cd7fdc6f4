from noisybsd import methods as methods
from noisybsd.data.dataset import Dataset as Dataset
from noisybsd.data.views import Views as Views
from noisybsd.engine.classifier import Classifier as Classifier
from noisybsd.engine.classifier import load as load
from noisybsd.library import (
    Run as Run,
)
from noisybsd.library import (
    inject_noise as inject_noise,
)
from noisybsd.library import (
    load_dataset as load_dataset,
)
from noisybsd.library import (
    train as train,
)
from noisybsd.methods.beliefs import BSD as BSD
from noisybsd.methods.contrastive import simclr as simclr
from noisybsd.methods.contrastive import supcon as supcon
from noisybsd.methods.parts import cross_entropy as cross_entropy
from noisybsd.models.bank import FeatureBank as FeatureBank
from noisybsd.report.arrays import (
    find_label_issues as find_label_issues,
)
from noisybsd.report.arrays import (
    label_table as label_table,
)
from noisybsd.report.arrays import (
    noise_matrix as noise_matrix,
)
from noisybsd.report.arrays import (
    noise_rate as noise_rate,
)
from noisybsd.report.arrays import (
    write_report as write_report,
)

__version__: str
