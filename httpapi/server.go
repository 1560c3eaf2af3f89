package httpapi

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"time"
)

// Server is a node's HTTP server. It is made by New and is safe for concurrent use.
type Server struct {
	cfg       Config
	log       *slog.Logger
	handler   http.Handler
	http      *http.Server
	metrics   *metrics
	admission *admission
	forward   *http.Transport // to the leader
	tenures   tenures
	// crossOrigin tells a browser's request made for another site.
	crossOrigin *http.CrossOriginProtection
	// settingsLock holds one token: a change of the settings reads, changes and proposes.
	settingsLock chan struct{}
	turns        turns
	buffers      bufferPool
	eventBuffers bufferPool
	watches      watchCount

	// stopping is closed when the server begins to stop: requests that wait for a
	// leader give up then, so that a drain need not wait for their timeouts.
	stopping <-chan struct{}
	// stopped ends when stopping is closed, as a context, and so do the answers that have no
	// end of their own.
	stopped context.Context
	stop    context.CancelFunc
	serving sync.WaitGroup
	// mu guards closed: nothing begins to serve once somebody waits for it to end.
	mu     sync.Mutex
	closed bool
}

// New makes a server; it opens nothing. Its metrics are registered with
// cfg.Metrics, so one registry can have one server only.
func New(cfg Config) *Server {
	cfg = cfg.withDefaults()
	s := &Server{cfg: cfg, log: cfg.Logger}
	s.stopped, s.stop = context.WithCancel(context.Background())
	s.stopping = s.stopped.Done()
	s.metrics = newMetrics(cfg.Metrics)
	s.watches = watchCount{limit: int64(cfg.MaxWatches), gauge: s.metrics.watches}
	s.admission = newAdmission(cfg.MaxInflightBytes, s.metrics.inflightBytes)
	s.forward = newForwardTransport(cfg.ForwardConns, cfg.Dial)
	s.crossOrigin = http.NewCrossOriginProtection()
	s.buffers.size = pieceBytes + pieceBytes/4
	s.eventBuffers.size = watchPieceBytes + watchPieceBytes/4
	s.settingsLock = make(chan struct{}, 1)
	s.handler = s.routes()

	var protocols http.Protocols
	protocols.SetHTTP1(true)
	protocols.SetHTTP2(true)
	protocols.SetUnencryptedHTTP2(true)
	s.http = &http.Server{
		Handler:           s.handler,
		Protocols:         &protocols,
		ReadHeaderTimeout: cfg.HeaderTimeout,
		IdleTimeout:       cfg.IdleTimeout,
		MaxHeaderBytes:    cfg.MaxHeaderBytes,
		// OPTIONS * goes to the router as everything else does.
		DisableGeneralOptionsHandler: true,
		ErrorLog:                     slog.NewLogLogger(cfg.Logger.Handler(), slog.LevelDebug),
		HTTP2: &http.HTTP2Config{
			MaxConcurrentStreams: 250,
			SendPingTimeout:      30 * time.Second,
			PingTimeout:          15 * time.Second,
			WriteByteTimeout:     cfg.ProgressTimeout,
		},
	}
	return s
}

// Handler returns the server's handler, for tests and for embedding.
func (s *Server) Handler() http.Handler { return s.handler }

// Serve accepts connections on l until Shutdown or Close; it then returns nil. It
// closes l.
func (s *Server) Serve(l net.Listener) error {
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return l.Close()
	}
	s.serving.Add(1)
	s.mu.Unlock()
	defer s.serving.Done()
	s.serving.Go(func() { s.tenures.watch(s.cfg.Cluster, s.stopping) })
	limited := newLimitListener(l, s.cfg.MaxConns, s.metrics.connections, s.metrics.refused)
	defer limited.wait()
	err := s.http.Serve(limited)
	if errors.Is(err, http.ErrServerClosed) {
		return nil
	}
	return err
}

// Drain makes the server ask its clients to go elsewhere: answers close their
// connection, requests that wait for a leader are answered at once, and streams and
// watches end. It keeps accepting, so that probes see the node's readiness.
func (s *Server) Drain() {
	s.stop()
	s.http.SetKeepAlivesEnabled(false)
}

// Shutdown drains, stops accepting, and waits for the requests at work until ctx
// ends; what is left then is cut off. It may be called more than once.
func (s *Server) Shutdown(ctx context.Context) error {
	s.Drain()
	err := s.http.Shutdown(ctx)
	if err != nil {
		err = errors.Join(err, s.http.Close())
	}
	s.waitServing()
	s.forward.CloseIdleConnections()
	return err
}

// Close cuts off everything. It is idempotent and waits for Serve to return.
func (s *Server) Close() error {
	s.Drain()
	err := s.http.Close()
	s.waitServing()
	s.forward.CloseIdleConnections()
	return err
}

func (s *Server) waitServing() {
	s.mu.Lock()
	s.closed = true
	s.mu.Unlock()
	s.serving.Wait()
}
