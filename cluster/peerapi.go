package cluster

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"

	"github.com/settkv/sett/kv"
)

// The peer protocol: JSON over HTTP.
const (
	// HeaderClusterID carries the caller's cluster id on every peer call; empty before
	// formation.
	HeaderClusterID = "Sett-Cluster-Id"
	// headerTarget names the server that a call is meant for: an address may have
	// passed to another.
	headerTarget = "Sett-Server-Id"

	pathPrefix     = "/internal/v1/"
	pathIdentity   = pathPrefix + "identity"
	pathFormation  = pathPrefix + "formation/"
	pathAdopt      = pathPrefix + "adopt"
	pathRefused    = pathPrefix + "refused"
	pathRemoved    = pathPrefix + "removed"
	pathMembership = pathPrefix + "membership"
	pathReadIndex  = pathPrefix + "read-index"
	pathClock      = pathPrefix + "clock"
	pathStatus     = pathPrefix + "status"
	pathRemove     = pathPrefix + "members/remove"
	pathDemote     = pathPrefix + "members/demote"
	pathEnding     = pathPrefix + "ending"

	maxPeerBody = 1 << 20
	maxReason   = 1024
)

type empty struct{}

// identity is what a node says of itself to a caller that knows only its address.
type identity struct {
	ServerID    string `json:"server_id"`
	ID          string `json:"id"`
	ClusterID   string `json:"cluster_id"`
	ClusterName string `json:"cluster_name"`
	RaftAddr    string `json:"raft_addr"`
	HTTPAddr    string `json:"http_addr"`
	GossipAddr  string `json:"gossip_addr"`
	Nonvoter    bool   `json:"nonvoter"`
	Version     string `json:"version"`
}

type adoptRequest struct {
	ClusterID   string   `json:"cluster_id"`
	ClusterName string   `json:"cluster_name"`
	Seeds       []string `json:"seeds"`
	Rejoin      bool     `json:"rejoin"` // an administrator asked: forget that it was removed
}

type refusedRequest struct {
	Reason string `json:"reason"`
}

type removedRequest struct {
	From string `json:"from"` // server id of the leader that says so
}

type membershipRequest struct {
	ServerID string `json:"server_id"`
}

type membershipAnswer struct {
	Member  bool `json:"member"`  // in the Raft configuration
	Removed bool `json:"removed"` // recorded as removed
}

type readIndexAnswer struct {
	Index uint64 `json:"index"`
}

type clockAnswer struct {
	UnixNano int64 `json:"unix_nano"`
}

type changeRequest struct {
	ID    string `json:"id"`
	Force bool   `json:"force"`
}

// endingRequest is a kv.Ending on the wire. The key may be any bytes.
type endingRequest struct {
	Key     []byte   `json:"key"`
	Request [32]byte `json:"request"`
	Began   uint64   `json:"began"`
	Status  int      `json:"status"`
	Body    []byte   `json:"body,omitempty"`
}

// peerError is a kv.Error on the wire.
type peerError struct {
	Code    kv.Code    `json:"code"`
	Outcome kv.Outcome `json:"outcome,omitempty"`
	Message string     `json:"message"`
	Leader  string     `json:"leader,omitempty"`
}

// Handler serves the peer protocol, under /internal/v1/. Bodies are bounded to 1 MiB.
func (c *Cluster) Handler() http.Handler {
	mux := peerMux{ServeMux: http.NewServeMux(), c: c}
	// Before a node has a cluster it takes part in formation and can be adopted.
	handle(mux, "GET "+pathIdentity, anyone, func(context.Context, empty) (identity, error) { return c.identity(), nil })
	handle(mux, "POST "+pathAdopt, anyone, c.onAdopt)
	handle(mux, "POST "+pathRefused, anyone, c.onRefused)
	for _, kind := range []string{msgPromise, msgAbort, msgCommit, msgStatus} {
		handle(mux, "POST "+pathFormation+kind, anyone, func(_ context.Context, m message) (answer, error) {
			m.Kind = kind
			return c.form.receive(m)
		})
	}
	handle(mux, "POST "+pathRemoved, members, c.onRemoved)
	handle(mux, "POST "+pathMembership, members, c.onMembership)
	handle(mux, "POST "+pathReadIndex, members, func(ctx context.Context, _ empty) (readIndexAnswer, error) {
		i, err := c.cfg.ReadIndex(ctx)
		return readIndexAnswer{Index: i}, err
	})
	handle(mux, "GET "+pathClock, members, func(context.Context, empty) (clockAnswer, error) {
		return clockAnswer{UnixNano: c.cfg.WallClock().UnixNano()}, nil
	})
	handle(mux, "GET "+pathStatus, members, func(context.Context, empty) (Status, error) { return c.ownStatus(), nil })
	handle(mux, "POST "+pathRemove, members, func(ctx context.Context, in changeRequest) (empty, error) {
		return empty{}, c.RemoveMember(ctx, in.ID, in.Force)
	})
	handle(mux, "POST "+pathDemote, members, func(ctx context.Context, in changeRequest) (kv.Member, error) {
		return c.Demote(ctx, in.ID, in.Force)
	})
	handle(mux, "POST "+pathEnding, members, func(ctx context.Context, in endingRequest) (empty, error) {
		return empty{}, c.cfg.Directory.PutEnding(ctx, kv.Ending{
			Once: kv.Once{Key: string(in.Key), Request: in.Request}, Began: in.Began, Status: in.Status, Body: in.Body,
		})
	})
	mux.HandleFunc("/", func(w http.ResponseWriter, _ *http.Request) {
		writePeerError(w, kv.Errorf(kv.CodeNotFound, "no such peer call"))
	})
	return mux
}

// access says who may call.
type access int

const (
	anyone  access = iota // no cluster id, or the same
	members               // the same cluster id, and there is one
)

type peerMux struct {
	*http.ServeMux
	c *Cluster
}

// handle routes a pattern to fn, for those who may call it.
func handle[In, Out any](mux peerMux, pattern string, who access, fn func(context.Context, In) (Out, error)) {
	c := mux.c
	mux.HandleFunc(pattern, func(w http.ResponseWriter, r *http.Request) {
		if err := c.admit(r, who); err != nil {
			writePeerError(w, err)
			return
		}
		var in In
		if r.Method == http.MethodPost {
			if err := json.NewDecoder(http.MaxBytesReader(w, r.Body, maxPeerBody)).Decode(&in); err != nil {
				writePeerError(w, kv.Errorf(kv.CodeInvalidArgument, "malformed peer call"))
				return
			}
		}
		out, err := fn(r.Context(), in)
		if err != nil {
			e := kv.AsError(err)
			if e.Code == kv.CodeInternal && c.warn.allow("peer call "+pattern) {
				c.log.Error("peer call failed", "call", pattern, "err", err)
			}
			writePeerError(w, e)
			return
		}
		writePeerJSON(w, http.StatusOK, out)
	})
}

// ForMembers lets only members of this cluster through to h: those that name it.
func (c *Cluster) ForMembers(h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if err := c.admit(r, members); err != nil {
			writePeerError(w, err)
			return
		}
		h.ServeHTTP(w, r)
	})
}

// admit refuses strangers (Invariant 28) and calls for somebody else.
func (c *Cluster) admit(r *http.Request, who access) *kv.Error {
	if t := r.Header.Get(headerTarget); t != "" && t != c.cfg.ServerID {
		return kv.NotApplied(kv.CodeConflict, "this is server %s, not %s", c.cfg.ServerID, t)
	}
	own, theirs := c.ClusterID(), r.Header.Get(HeaderClusterID)
	switch {
	case own != "" && theirs != "" && own != theirs:
		if c.warn.allow("stranger call " + theirs) {
			c.log.Warn("peer call of another cluster refused", "from", r.RemoteAddr, "cluster", theirs, "call", r.URL.Path)
		}
		return kv.NotApplied(kv.CodeConflict, "this node belongs to cluster %s, the caller to %s", own, theirs)
	case who == members && own == "":
		return kv.NotApplied(kv.CodeNotReady, "this node belongs to no cluster yet")
	case who == members && theirs == "":
		return kv.NotApplied(kv.CodeConflict, "the call does not name its cluster")
	}
	return nil
}

func writePeerJSON(w http.ResponseWriter, status int, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(v) // the caller is gone; it will ask again
}

// writePeerError sends an error: its status is for people with a packet dump, peers
// go by the body.
func writePeerError(w http.ResponseWriter, e *kv.Error) {
	status := http.StatusConflict
	if e.Code == kv.CodeNotFound {
		status = http.StatusNotFound
	}
	writePeerJSON(w, status, peerError{Code: e.Code, Outcome: e.Outcome, Message: e.Msg, Leader: e.Leader})
}

func (c *Cluster) identity() identity {
	cfg := &c.cfg
	return identity{
		ServerID: cfg.ServerID, ID: cfg.Name, ClusterID: c.ClusterID(), ClusterName: cfg.ClusterName, RaftAddr: cfg.RaftAddr,
		HTTPAddr: cfg.HTTPAddr, GossipAddr: c.gossip.addr, Nonvoter: cfg.Nonvoter, Version: cfg.Version,
	}
}

func (c *Cluster) ownStatus() Status {
	s := c.cfg.Status()
	s.Version = c.cfg.Version
	return s
}

func (c *Cluster) onAdopt(_ context.Context, in adoptRequest) (empty, error) {
	if in.ClusterID == "" || in.ClusterName != c.cfg.ClusterName {
		return empty{}, kv.NotApplied(kv.CodeConflict, "this node is for a cluster named %q, not %q", c.cfg.ClusterName, in.ClusterName)
	}
	return empty{}, c.form.adopt(in)
}

func (c *Cluster) onRefused(_ context.Context, in refusedRequest) (empty, error) {
	reason := in.Reason[:min(len(in.Reason), maxReason)]
	c.refusal.Store(&refusal{reason: reason, at: time.Now()})
	if c.warn.allow("refused") {
		c.log.Warn("the cluster does not take this node in", "why", reason)
	}
	return empty{}, nil
}

// onRemoved does not believe it: it asks back, so that a late or forged message
// can't take a member out of service.
func (c *Cluster) onRemoved(ctx context.Context, in removedRequest) (empty, error) {
	return empty{}, c.verifyRemoval(ctx, in.From)
}

func (c *Cluster) onMembership(_ context.Context, in membershipRequest) (membershipAnswer, error) {
	if _, ready := c.cfg.Consensus.Ready(); !ready || !c.IsLeader() {
		return membershipAnswer{}, c.noLeader()
	}
	r, _ := c.cfg.Directory.Record(in.ServerID)
	return membershipAnswer{Member: c.inConfiguration(in.ServerID), Removed: r.Removed}, nil
}

// target is the receiver of a peer call. server may be empty: whoever is there.
type target struct {
	server, addr string
	within       time.Duration // longest call; 0: Timing.Call
}

// peerCall is one request to a peer; with a nil body it is a GET.
type peerCall struct {
	target
	path string
	body any
}

func (t target) get(path string) peerCall { return peerCall{target: t, path: path} }
func (t target) post(path string, body any) peerCall {
	return peerCall{target: t, path: path, body: body}
}

type peerClient struct {
	c    *Cluster
	http *http.Client
}

// call makes a request and decodes the answer into out. Errors that the peer reported
// are *kv.Error; others are the network's.
func (p *peerClient) call(ctx context.Context, r peerCall, out any) error {
	if r.addr == "" {
		return errors.New("its http address is not known")
	}
	if r.within == 0 {
		r.within = p.c.cfg.Timing.Call
	}
	ctx, cancel := context.WithTimeout(ctx, r.within)
	defer cancel()
	method, body := http.MethodGet, io.Reader(nil)
	if r.body != nil {
		b, err := json.Marshal(r.body)
		if err != nil {
			return err
		}
		method, body = http.MethodPost, bytes.NewReader(b)
	}
	req, err := http.NewRequestWithContext(ctx, method, p.c.cfg.Scheme+"://"+r.addr+r.path, body)
	if err != nil {
		return err
	}
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set(HeaderClusterID, p.c.ClusterID())
	req.Header.Set(headerTarget, r.server)
	resp, err := p.http.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	raw, err := io.ReadAll(io.LimitReader(resp.Body, maxPeerBody))
	if err != nil {
		return err
	}
	if resp.StatusCode == http.StatusOK {
		return json.Unmarshal(raw, out)
	}
	var e peerError
	if json.Unmarshal(raw, &e) != nil || e.Code == "" {
		return fmt.Errorf("%s answered %s", r.addr, resp.Status)
	}
	return &kv.Error{Code: e.Code, Outcome: e.Outcome, Msg: e.Message, Leader: e.Leader}
}

// rootCause is the innermost text of an error, for a line that people read.
func rootCause(err error) string {
	var e *kv.Error
	if errors.As(err, &e) {
		return e.Msg
	}
	s := strings.TrimSpace(err.Error())
	if i := strings.LastIndex(s, ": "); i >= 0 {
		return s[i+2:]
	}
	return s
}
