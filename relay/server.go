package relay

import (
	"bufio"
	"context"
	"net"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/settkv/sett/kv"
)

const (
	// maxStreams bounds the streams that are open at once: a cluster has few nodes.
	maxStreams = 256
	// maxInFlight bounds the proposals of a stream that wait for their answers. Beyond it
	// the stream is not read.
	maxInFlight = 4096
)

// Handler proposes a command on this node, within ctx. The command comes from another
// process and was checked by nobody here. The error, a *kv.Error, says exactly what became
// of it.
type Handler func(ctx context.Context, cmd []byte) (Answer, error)

// Server is the leader's side, an http.Handler for requests to upgrade. It checks no
// caller: that is for who stands before it. Any node may be asked; one that does not lead
// answers so.
type Server struct {
	handle Handler

	mu     sync.Mutex
	conns  map[net.Conn]struct{}
	closed bool
	wg     sync.WaitGroup
}

// NewServer makes a server that hands proposals to h.
func NewServer(h Handler) *Server {
	return &Server{handle: h, conns: make(map[net.Conn]struct{})}
}

// ServeHTTP takes the connection of a request to upgrade and returns; the stream goes on
// until either side ends it.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if !strings.EqualFold(r.Header.Get("Connection"), "Upgrade") || r.Header.Get("Upgrade") != protocol || r.ProtoMajor != 1 {
		w.Header().Set("Upgrade", protocol)
		http.Error(w, "this is for streams of "+protocol, http.StatusUpgradeRequired)
		return
	}
	conn, rw, err := http.NewResponseController(w).Hijack()
	if err != nil {
		http.Error(w, "this connection can't be upgraded", http.StatusInternalServerError)
		return
	}
	if err := conn.SetDeadline(time.Time{}); err != nil || !s.track(conn) {
		_ = conn.Close()
		return
	}
	go func() {
		defer s.untrack(conn)
		s.serve(conn, rw.Reader)
	}()
}

func (s *Server) track(conn net.Conn) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed || len(s.conns) >= maxStreams {
		return false
	}
	s.conns[conn] = struct{}{}
	s.wg.Add(1)
	return true
}

func (s *Server) untrack(conn net.Conn) {
	_ = conn.Close()
	s.mu.Lock()
	delete(s.conns, conn)
	s.mu.Unlock()
	s.wg.Done()
}

// serve reads proposals until the connection ends. It returns when all of them have
// been answered.
func (s *Server) serve(conn net.Conn, r *bufio.Reader) {
	w := &writer{conn: conn}
	if err := w.send(func(b []byte) []byte {
		return append(b, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: "+protocol+"\r\n\r\n"...)
	}); err != nil {
		return
	}
	// Proposals outlive a stream that breaks: they end by their own budget.
	var work sync.WaitGroup
	defer work.Wait()
	slots := make(chan struct{}, maxInFlight)
	for {
		b, err := readFrame(r, maxProposalBytes)
		if err != nil {
			return
		}
		id, budget, cmd, err := parseProposal(b)
		if err != nil {
			return
		}
		slots <- struct{}{}
		work.Go(func() {
			defer func() { <-slots }()
			ctx, cancel := context.WithTimeout(context.Background(), budget)
			defer cancel()
			a, err := s.handle(ctx, cmd)
			if err == nil && len(a.Result) > maxAnswerBytes-64 {
				err = kv.Unknown(nil, "the write was applied, but its result of %d bytes is too big to be passed on", len(a.Result))
			}
			_ = w.send(func(b []byte) []byte { return appendAnswer(b, id, a, err) }) // the stream is gone: the other side knows
		})
	}
}

// Close ends all streams and waits for the proposals under way to be decided, or for
// their budgets to end.
func (s *Server) Close() {
	s.mu.Lock()
	s.closed = true
	for conn := range s.conns {
		_ = conn.Close()
	}
	s.mu.Unlock()
	s.wg.Wait()
}
