package httpapi

import (
	"context"
	"encoding/json"
	"errors"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/settkv/sett/kv"
)

// maxMemberIDBytes bounds a node's id.
const maxMemberIDBytes = 128

// settingsJSON is kv.ClusterSettings as the API shows it.
type settingsJSON struct {
	HistoryRetention      string `json:"history_retention"`
	HistoryRetentionBytes uint64 `json:"history_retention_bytes"`
	MaxKeyBytes           uint64 `json:"max_key_bytes"`
	MaxValueBytes         uint64 `json:"max_value_bytes"`
	MaxRequestBytes       uint64 `json:"max_request_bytes"`
}

func newSettingsJSON(s kv.ClusterSettings) settingsJSON {
	return settingsJSON{
		HistoryRetention: shortDuration(s.HistoryRetention), HistoryRetentionBytes: s.HistoryRetentionBytes,
		MaxKeyBytes: s.MaxKeyBytes, MaxValueBytes: s.MaxValueBytes, MaxRequestBytes: s.MaxRequestBytes,
	}
}

// clusterJSON is kv.ClusterInfo as the API shows it.
type clusterJSON struct {
	ID       string       `json:"id"`
	Name     string       `json:"name"`
	Leader   string       `json:"leader"`
	Term     uint64       `json:"term"`
	Members  []kv.Member  `json:"members"`
	Settings settingsJSON `json:"settings"`
}

func (s *Server) getCluster(ctx context.Context, x *exchange) error {
	if err := x.noBody(); err != nil {
		return err
	}
	info, err := s.cfg.Cluster.Info(ctx)
	if err != nil {
		return err
	}
	if info.Members == nil {
		info.Members = []kv.Member{}
	}
	return x.writeJSON(http.StatusOK, clusterJSON{
		ID: info.ID, Name: info.Name, Leader: info.Leader, Term: info.Term,
		Members: info.Members, Settings: newSettingsJSON(info.Settings),
	})
}

// endTimeout bounds the note of how an operation ended.
const endTimeout = 2 * time.Second

// operation is something that the leader does and that is none of the state machine's. op is what is known of
// it: if there were earlier tries of the same request, they may have done it, in part or as a whole, so what
// is as it is to be is no error then.
type operation func(ctx context.Context, op kv.Operation) (status int, v any, err error)

// admin does an operation on the leader and answers with what it returns. With an idempotency key the cluster
// is told when it begins and how it ended (ADR 0016). id is the member that the operation is about, if it is about one.
func (x *exchange) admin(ctx context.Context, body []byte, id string, do operation) error {
	return x.adminOnce(ctx, body, func(ctx context.Context, once kv.Once) (int, any, bool, error) {
		member := id != "" && x.s.cfg.Cluster.HasMember(id)
		if once.Key == "" {
			status, v, err := do(ctx, kv.Operation{Member: member, Tries: 1})
			return status, v, false, err
		}
		leave, err := x.s.turns.take(ctx, once.Key)
		if err != nil {
			return 0, nil, false, err
		}
		op, err := x.s.cfg.Store.Begin(ctx, once, member)
		switch {
		case err != nil:
			leave()
			return 0, nil, false, err
		case op.Status != 0:
			leave()
			if len(op.Body) == 0 {
				return op.Status, nil, true, nil
			}
			return op.Status, json.RawMessage(op.Body), true, nil
		}
		status, v, err := do(ctx, op)
		if err != nil && op.Tries > 1 {
			leave()
			return 0, nil, false, stillInDoubt(err)
		}
		return status, v, false, x.noteEnd(ctx, leave, kv.Ending{Once: once, Began: op.Began, Status: status}, v, err)
	})
}

// noteEnd notes how an operation ended, if that is known, leaves the turn, and returns err. It does not wait for longer than
// ctx. That the note is lost does not change the answer: a repeat is one more try then.
func (x *exchange) noteEnd(ctx context.Context, leave func(), end kv.Ending, v any, err error) error {
	switch {
	case err != nil && kv.AsError(err).Outcome != kv.OutcomeNotApplied:
		leave()
		return err
	case err != nil:
		end.Status = 0
	case v != nil:
		if end.Body, err = encodeJSON(v); err != nil {
			leave()
			return err
		}
	}
	noted := make(chan struct{})
	s, id := x.s, x.id
	s.serving.Go(func() {
		defer close(noted)
		defer leave()
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), endTimeout)
		defer cancel()
		if lost := s.cfg.Store.End(ctx, end); lost != nil {
			s.log.Warn("the end of an operation was not noted", "request_id", id, "err", lost)
		}
	})
	select {
	case <-noted:
	case <-ctx.Done():
	}
	return err
}

// stillInDoubt is what may be said if a further try of an operation was refused: an earlier one may have been applied.
func stillInDoubt(err error) error {
	e := *kv.AsError(err)
	switch {
	case e.Outcome != kv.OutcomeNotApplied:
		return err
	case decidedCode(e.Code):
		e.Outcome = kv.OutcomeUnknown
		return &e
	}
	return kv.Unknown(err, "an earlier try of this request may have been applied; repeat it with the same Idempotency-Key to learn what became of it")
}

// turns lets one request at a time have a key.
type turns struct {
	mu    sync.Mutex
	taken map[string]chan struct{} // closed when the turn is over
}

// take waits within ctx until the key is free, and takes it until done is called.
func (t *turns) take(ctx context.Context, key string) (done func(), err error) {
	for {
		t.mu.Lock()
		over, busy := t.taken[key]
		if !busy {
			if t.taken == nil {
				t.taken = map[string]chan struct{}{}
			}
			mine := make(chan struct{})
			t.taken[key] = mine
			t.mu.Unlock()
			return func() {
				t.mu.Lock()
				delete(t.taken, key)
				t.mu.Unlock()
				close(mine)
			}, nil
		}
		t.mu.Unlock()
		select {
		case <-over:
		case <-ctx.Done():
			return nil, kv.Unknown(ctx.Err(), "a request with the same Idempotency-Key is under way; repeat this one to learn what became of it")
		}
	}
}

// adminOnce is admin of an operation that takes an idempotency key; replayed says that it was done before.
// As in transact, with a key an attempt whose fate is unknown is made again.
func (x *exchange) adminOnce(ctx context.Context, body []byte, do func(ctx context.Context, once kv.Once) (status int, v any, replayed bool, err error)) error {
	var status int
	var v any
	var replayed bool
	once := x.once(body)
	call := leaderCall{body: body, repeat: once.Key != "", local: func(ctx context.Context) (err error) {
		status, v, replayed, err = do(ctx, once)
		return err
	}}
	relayed, err := x.onLeader(ctx, &call)
	if relayed {
		return nil
	}
	if replayed {
		x.Header().Set(headerReplayed, "true")
	}
	switch {
	case err != nil:
		return call.settle(err)
	case v == nil:
		x.WriteHeader(status)
		return nil
	}
	return x.writeJSON(status, v)
}

// postMember serves POST /v1/cluster/members.
func (s *Server) postMember(ctx context.Context, x *exchange) error {
	if redirected, err := x.redirect(ctx); redirected || err != nil {
		return err
	}
	m := kv.MemberSpec{Voter: true}
	body, err := x.readFields(false, func(j *jsonReader) map[string]func() error {
		return map[string]func() error{
			"id": readInto(j.text, &m.ID), "raft_addr": readInto(j.text, &m.RaftAddr),
			"http_addr": readInto(j.text, &m.HTTPAddr), "voter": readInto(j.boolean, &m.Voter),
		}
	})
	if err != nil {
		return err
	}
	if err := checkMember(m); err != nil {
		return err
	}
	return x.admin(ctx, body, m.ID, func(ctx context.Context, op kv.Operation) (int, any, error) {
		status := http.StatusCreated
		if op.Member {
			info, err := s.cfg.Cluster.Info(ctx)
			if err != nil {
				return 0, nil, err
			}
			for _, have := range info.Members {
				if have.ID == m.ID && have.RaftAddr == m.RaftAddr && have.HTTPAddr == m.HTTPAddr {
					status = http.StatusOK
				}
			}
		}
		added, err := s.cfg.Cluster.AddMember(ctx, m)
		return status, added, err
	})
}

func checkMember(m kv.MemberSpec) error {
	if err := checkMemberID(m.ID); err != nil {
		return err
	}
	for _, a := range []struct{ name, addr string }{{"raft_addr", m.RaftAddr}, {"http_addr", m.HTTPAddr}} {
		host, port, err := net.SplitHostPort(a.addr)
		n, numErr := strconv.ParseUint(port, 10, 16)
		if err != nil || numErr != nil || host == "" || n == 0 {
			return badJSON("has %s %s, which is not HOST:PORT", a.name, quote(a.addr))
		}
	}
	return nil
}

func checkMemberID(id string) error {
	if !visibleASCII(id, maxMemberIDBytes) {
		return kv.Errorf(kv.CodeInvalidArgument, "a member's id is 1 to %d visible ASCII characters", maxMemberIDBytes)
	}
	return nil
}

// memberID is the id in the path /v1/cluster/members/{id}…
func (x *exchange) memberID() (string, error) {
	id, err := x.pathID("/v1/cluster/members/")
	if err != nil {
		return "", err
	}
	return id, checkMemberID(id)
}

// pathID is the element behind prefix of the path.
func (x *exchange) pathID(prefix string) (string, error) {
	rest := strings.TrimPrefix(x.r.URL.EscapedPath(), prefix)
	rest, _, _ = strings.Cut(rest, "/")
	id, err := url.PathUnescape(rest)
	if err != nil {
		return "", kv.Errorf(kv.CodeInvalidArgument, "the path has a malformed percent-escape")
	}
	return id, nil
}

// memberOp serves the requests that name a member and carry no body.
func (s *Server) memberOp(do func(ctx context.Context, id string, force bool, op kv.Operation) (status int, v any, err error)) handler {
	return func(ctx context.Context, x *exchange) error {
		id, err := x.memberID()
		if err != nil {
			return err
		}
		if err := x.params.checkFlags("force"); err != nil {
			return err
		}
		if err := x.noBody(); err != nil {
			return err
		}
		force := x.params.flag("force")
		return x.admin(ctx, nil, id, func(ctx context.Context, op kv.Operation) (int, any, error) {
			return do(ctx, id, force, op)
		})
	}
}

func (s *Server) deleteMember(ctx context.Context, id string, force bool, op kv.Operation) (int, any, error) {
	err := s.cfg.Cluster.RemoveMember(ctx, id, force)
	if op.Tries > 1 && op.Member && errors.Is(err, kv.ErrNotFound) {
		err = nil
	}
	return http.StatusNoContent, nil, err
}

func (s *Server) promoteMember(ctx context.Context, id string, _ bool, _ kv.Operation) (int, any, error) {
	m, err := s.cfg.Cluster.Promote(ctx, id)
	return http.StatusOK, m, err
}

func (s *Server) demoteMember(ctx context.Context, id string, force bool, _ kv.Operation) (int, any, error) {
	m, err := s.cfg.Cluster.Demote(ctx, id, force)
	return http.StatusOK, m, err
}

// postTransfer serves POST /v1/cluster/transfer.
func (s *Server) postTransfer(ctx context.Context, x *exchange) error {
	if redirected, err := x.redirect(ctx); redirected || err != nil {
		return err
	}
	var to string
	named := false
	body, err := x.readFields(true, func(j *jsonReader) map[string]func() error {
		return map[string]func() error{"to": func() (err error) {
			named = true
			to, err = j.text()
			return err
		}}
	})
	if err != nil {
		return err
	}
	if named {
		if err := checkMemberID(to); err != nil {
			return err
		}
	}
	return x.admin(ctx, body, "", func(ctx context.Context, op kv.Operation) (int, any, error) {
		if op.Tries > 1 && to == "" {
			// If the term is another one, leadership has gone over since.
			info, err := s.cfg.Cluster.Info(ctx)
			if err != nil || info.Term > op.Term {
				return http.StatusOK, map[string]string{"leader": s.cfg.Cluster.Self()}, err
			}
		}
		leader, err := s.cfg.Cluster.Transfer(ctx, to)
		return http.StatusOK, map[string]string{"leader": leader}, err
	})
}

// putSettings serves PUT /v1/cluster/settings.
func (s *Server) putSettings(ctx context.Context, x *exchange) error {
	if redirected, err := x.redirect(ctx); redirected || err != nil {
		return err
	}
	var sets []func(*kv.ClusterSettings)
	body, err := x.readFields(false, func(j *jsonReader) map[string]func() error {
		return settingsFields(j, func(set func(*kv.ClusterSettings)) { sets = append(sets, set) })
	})
	if err != nil {
		return err
	}
	return x.adminOnce(ctx, body, func(ctx context.Context, once kv.Once) (int, any, bool, error) {
		// Two changes of different settings at once must not undo each other.
		select {
		case s.settingsLock <- struct{}{}:
			defer func() { <-s.settingsLock }()
		case <-ctx.Done():
			return 0, nil, false, kv.NotApplied(kv.CodeTimeout, "another change of the settings is under way; try again")
		}
		want := s.cfg.Store.Settings()
		for _, set := range sets {
			set(&want)
		}
		now, replayed, err := s.cfg.Store.SetSettings(ctx, want, once)
		return http.StatusOK, newSettingsJSON(now), replayed, err
	})
}

// settingsFields reads any subset of the settings; add gets what sets each.
func settingsFields(j *jsonReader, add func(func(*kv.ClusterSettings))) map[string]func() error {
	fields := map[string]func() error{"history_retention": func() error {
		text, err := j.text()
		if err != nil {
			return err
		}
		d, err := time.ParseDuration(text)
		if err != nil || d < 0 || d > kv.HistoryRetentionBound {
			return j.bad(`%s is not a duration such as "1h" or "30m", up to %s`, quote(text), shortDuration(kv.HistoryRetentionBound))
		}
		add(func(c *kv.ClusterSettings) { c.HistoryRetention = d })
		return nil
	}}
	for _, f := range []struct {
		name      string
		low, high uint64
		of        func(*kv.ClusterSettings) *uint64
	}{
		{"history_retention_bytes", 0, kv.HistoryBytesBound, func(c *kv.ClusterSettings) *uint64 { return &c.HistoryRetentionBytes }},
		{"max_key_bytes", 1, kv.MaxKeyBytesBound, func(c *kv.ClusterSettings) *uint64 { return &c.MaxKeyBytes }},
		{"max_value_bytes", 1, kv.MaxValueBytesBound, func(c *kv.ClusterSettings) *uint64 { return &c.MaxValueBytes }},
		{"max_request_bytes", 1, kv.MaxRequestBytesBound, func(c *kv.ClusterSettings) *uint64 { return &c.MaxRequestBytes }},
	} {
		fields[f.name] = func() error {
			n, err := j.uint64()
			if err != nil {
				return err
			}
			if n < f.low || n > f.high {
				return j.bad("it takes %d to %d", f.low, f.high)
			}
			add(func(c *kv.ClusterSettings) { *f.of(c) = n })
			return nil
		}
	}
	return fields
}

func (s *Server) getStatus(ctx context.Context, x *exchange) error {
	if err := x.noBody(); err != nil {
		return err
	}
	st, err := s.cfg.Health.Status(ctx)
	if err != nil {
		return err
	}
	x.setRevision(st.Revision)
	return x.writeJSON(http.StatusOK, st)
}

// postSnapshot serves POST /v1/snapshot: this node's own Raft snapshot.
func (s *Server) postSnapshot(ctx context.Context, x *exchange) error {
	if err := x.noBody(); err != nil {
		return err
	}
	index, err := s.cfg.Store.Snapshot(ctx)
	if err != nil {
		return err
	}
	return x.writeJSON(http.StatusOK, map[string]uint64{"snapshot_index": index})
}
