package httpapi

import (
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// metrics are this package's own. Labels are route names and methods of the route
// table, never anything a client can choose freely.
type metrics struct {
	requests      *prometheus.CounterVec
	latency       *prometheus.HistogramVec
	inflightBytes prometheus.Gauge
	connections   prometheus.Gauge
	refused       prometheus.Counter
	watches       prometheus.Gauge
	forwards      *prometheus.CounterVec
	panics        prometheus.Counter
}

func newMetrics(reg *prometheus.Registry) *metrics {
	m := &metrics{
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "sett_http_requests_total",
			Help: "HTTP requests answered, by route, method and status class.",
		}, []string{"route", "method", "status"}),
		latency: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name:    "sett_http_request_seconds",
			Help:    "Time from a request's headers to the end of its answer, in seconds.",
			Buckets: []float64{.0002, .0005, .001, .002, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30},
		}, []string{"route", "method"}),
		inflightBytes: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "sett_http_inflight_bytes",
			Help: "Bytes of bodies and proposals at work, bounded by max-inflight-bytes.",
		}),
		connections: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "sett_http_connections",
			Help: "Open client connections.",
		}),
		refused: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "sett_http_connections_refused_total",
			Help: "Connections turned away because too many were open.",
		}),
		watches: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "sett_http_watches",
			Help: "Watches under way.",
		}),
		forwards: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "sett_http_forwards_total",
			Help: "Attempts to forward a request to the leader, by result: answered, not_sent, refused, lost.",
		}, []string{"result"}),
		panics: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "sett_http_panics_total",
			Help: "Handlers that panicked; each is a bug.",
		}),
	}
	reg.MustRegister(m.requests, m.latency, m.inflightBytes, m.connections, m.refused, m.watches, m.forwards, m.panics)
	return m
}

func (m *metrics) observe(route, method string, status int, d time.Duration) {
	if !knownMethod(method) {
		method = "other"
	}
	m.requests.WithLabelValues(route, method, strconv.Itoa(status/100)+"xx").Inc()
	m.latency.WithLabelValues(route, method).Observe(d.Seconds())
}

func knownMethod(m string) bool {
	switch m {
	case "GET", "HEAD", "PUT", "POST", "DELETE", "OPTIONS", "PATCH":
		return true
	}
	return false
}
