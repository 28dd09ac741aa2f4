"""Prometheus metrics of one server, in a registry of its own.

The share of padding is `mrr_padding_tokens_total / (mrr_tokens_total + mrr_padding_tokens_total)`. The number of time
series is bounded: routes are templates, and of the settings that requests invent only the first few have a label.
"""

import platform
import threading
from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector
from prometheus_client.core import GaugeMetricFamily, InfoMetricFamily
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from mrr_model import __version__
from mrr_model.serving.records import BatchRecord, RequestRecord
from mrr_model.serving.service import RerankService

MAX_SETTINGS = 32
"""Settings of requests that get a label of their own."""
OTHER = "other"
"""The label of the rest."""
NONE = "none"
"""The label of requests that no setting ran for."""
SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
"""Buckets of times: from a few short documents on a GPU to the server's usual timeout."""
PAIRS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10_000)
REQUESTS = (1, 2, 4, 8, 16, 32, 64)


class SettingLabels:
    """Labels of settings, bounded in number. Threads may share it.

    Args:
        most: Labels for settings that requests choose.

    Example:
        >>> labels = SettingLabels(most=1)
        >>> [labels.of(name) for name in ("4@0.5", "4@0.4", "4@0.5")]
        ['4@0.5', 'other', '4@0.5']
        >>> labels.of("6@1", chosen_by_request=False)
        '6@1'
    """

    def __init__(self, most: int = MAX_SETTINGS) -> None:
        self._most = most
        self._invented: set[str] = set()
        self._own: set[str] = set()
        self._lock = threading.Lock()

    def of(self, setting: str, *, chosen_by_request: bool = True) -> str:
        """The label of a setting. The server's own settings are few and always have theirs."""
        with self._lock:
            if setting in self._own or setting in self._invented:
                return setting
            if chosen_by_request and len(self._invented) >= self._most:
                return OTHER
            (self._invented if chosen_by_request else self._own).add(setting)
            return setting


class Metrics:
    """What a server counts, and the text of `/metrics`."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._settings = SettingLabels()
        ProcessCollector(registry=self.registry)
        self._requests = self._counter(
            "requests", "HTTP requests by what they got.", "route", "status", "setting", "chosen_by"
        )
        self.in_flight = Gauge("mrr_requests_in_flight", "HTTP requests being answered.", registry=self.registry)
        self._duration = self._histogram(
            "request_duration_seconds", "From a request's header to the end of its answer.", SECONDS, "route"
        )
        self._queue_time = self._histogram(
            "request_queue_seconds", "Time that answered requests waited for their first batch.", SECONDS
        )
        self._model_time = self._histogram(
            "request_model_seconds", "Time of the batches that a request had part in.", SECONDS, "setting"
        )
        self._request_pairs = self._histogram("request_pairs", "Pairs of an answered request.", PAIRS)
        self._pairs = self._counter("pairs", "Pairs scored.", "setting")
        self._tokens = self._counter("tokens", "Tokens computed, without padding.", "setting")
        self._padding = self._counter("padding_tokens", "Padding computed beside them.", "setting")
        self._batch_duration = self._histogram("batch_duration_seconds", "Calls of the model.", SECONDS, "setting")
        self._batch_requests = self._histogram("batch_requests", "Requests that share a call of the model.", REQUESTS)

    def watch(self, service: RerankService) -> None:
        """Show a service's queue and state too, as they are when somebody asks."""
        self.registry.register(ServiceCollector(service))

    def batch(self, record: BatchRecord) -> None:
        """Count a call of the model."""
        setting = self._settings.of(record.setting)
        self._pairs.labels(setting).inc(record.pairs)
        self._tokens.labels(setting).inc(record.tokens)
        self._padding.labels(setting).inc(record.padding_tokens)
        self._batch_duration.labels(setting).observe(record.seconds)
        self._batch_requests.observe(record.requests)

    def request(self, record: RequestRecord) -> None:
        """Count an HTTP request."""
        setting, chosen_by, answer = NONE, NONE, record.answer
        if answer is not None:
            chosen_by = answer.setting.chosen_by
            setting = self._settings.of(answer.setting.label, chosen_by_request=chosen_by == "request")
            self._queue_time.observe(answer.queue_seconds)
            self._model_time.labels(setting).observe(answer.model_seconds)
            self._request_pairs.observe(answer.work.pairs)
        self._requests.labels(record.route, str(record.status), setting, chosen_by).inc()
        self._duration.labels(record.route).observe(record.seconds)

    def exposition(self, accept: str) -> tuple[bytes, str]:
        """All metrics as text.

        Args:
            accept: The header `Accept` of who asks: Prometheus' text format, or OpenMetrics.

        Returns:
            The text and its content type.
        """
        encode, content_type = choose_encoder(accept)
        return encode(self.registry), content_type

    def _counter(self, name: str, help_text: str, *labels: str) -> Counter:
        return Counter(f"mrr_{name}", help_text, labels, registry=self.registry)

    def _histogram(self, name: str, help_text: str, buckets: tuple[float, ...], *labels: str) -> Histogram:
        return Histogram(f"mrr_{name}", help_text, labels, buckets=buckets, registry=self.registry)


class ServiceCollector(Collector):
    """A service's queue, state, model and build."""

    def __init__(self, service: RerankService) -> None:
        self._service = service

    def collect(self) -> Iterator[Metric]:
        """The metrics, as they are now."""
        service = self._service
        queue = service.queue
        yield GaugeMetricFamily("mrr_ready", "Whether the model is loaded and takes requests.", value=service.ready)
        yield GaugeMetricFamily("mrr_queue_requests", "Re-ranking requests that wait or run.", value=queue.requests)
        yield GaugeMetricFamily("mrr_queue_pairs", "Pairs that have not been scored.", value=queue.pairs)
        yield GaugeMetricFamily(
            "mrr_queue_seconds", "Time that those take at the default setting, as estimated.", value=queue.seconds
        )
        yield GaugeMetricFamily("mrr_shed_level", "Steps of the shedding policy in force.", value=queue.shed_level)
        build = InfoMetricFamily("mrr_build", "Versions of the server.")
        build.add_metric((), {"version": __version__, "python": platform.python_version()})
        yield build
        if service.ready:
            yield self._model()

    def _model(self) -> Metric:
        service = self._service
        reranker = service.reranker
        info = InfoMetricFamily("mrr_model", "The model, where it runs, and the setting of requests that ask for none.")
        facts = {
            "model": service.model_name,
            "device": str(reranker.device),
            "dtype": str(reranker.dtype).removeprefix("torch."),
            "setting": service.default.label,
        }
        info.add_metric((), facts)
        return info
