from symdyn_core.testing import StudyConformance


class TestStudies(StudyConformance):
    package = "qec"
