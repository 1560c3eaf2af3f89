package httpapi

import (
	"context"
	"io"
	"maps"
	"net/http"
	"slices"
	"strings"

	"github.com/gorilla/mux"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/settkv/sett/kv"
)

const (
	routeKey      = "key"
	routeKeyQuery = "key_query"
	routeRange    = "range"
)

// handler serves one method of one route. What it returns is answered as a problem;
// it returns nil once it has answered itself.
type handler func(ctx context.Context, x *exchange) error

// endpoint is a handler and the query parameters it takes.
type endpoint struct {
	handle handler
	params []string
	// once says that it takes an Idempotency-Key.
	once bool
}

// route is a resource: its path as mux understands it, and its methods. HEAD comes
// with GET.
type route struct {
	name, path string
	prefix     bool // everything below path, too
	methods    map[string]endpoint
}

// routeTable is the whole API.
func (s *Server) routeTable() []route {
	read := []string{"consistency", "max_staleness", "min_revision", "revision"}
	key := func(extra ...string) map[string]endpoint {
		with := func(p ...string) []string { return append(p, extra...) }
		return map[string]endpoint{
			http.MethodGet:    {handle: s.getKey, params: with(read...)},
			http.MethodPut:    {handle: s.putKey, params: with("ttl", "previous"), once: true},
			http.MethodPost:   {handle: s.postKey, params: with("op", "by", "ttl", "previous"), once: true},
			http.MethodDelete: {handle: s.deleteKey, params: with("previous"), once: true},
		}
	}
	many := key("key")
	for method, e := range map[string]endpoint{
		http.MethodGet: {handle: s.getRange, params: rangeParams(append(read,
			"limit", "after", "reverse", "keys_only", "count_only", "delimiter")...)},
		http.MethodPost:   {handle: s.postBulk},
		http.MethodDelete: {handle: s.deleteRange, params: rangeParams("all", "atomic"), once: true},
	} {
		many[method] = s.byKey(many[method], e)
	}
	only := func(method string, h handler, params ...string) map[string]endpoint {
		return map[string]endpoint{method: {handle: h, params: params}}
	}
	once := func(method string, h handler, params ...string) map[string]endpoint {
		return map[string]endpoint{method: {handle: h, params: params, once: true}}
	}
	const member = "/v1/cluster/members/{id:[^/]+}"
	all := func() []kv.Check { return append(s.liveness(), s.cfg.Health.Ready()...) }
	return []route{
		{name: routeKey, path: keyPrefix, prefix: true, methods: key()},
		{name: routeKeyQuery, path: "/v1/kv", methods: many},
		{name: "txn", path: "/v1/txn", methods: map[string]endpoint{http.MethodPost: {handle: s.postTxn, once: true}}},
		{name: "watch", path: "/v1/watch", methods: only(http.MethodGet, s.getWatch, rangeParams("key", "from", "previous")...)},
		{name: "compact", path: "/v1/compact", methods: once(http.MethodPost, s.postCompact)},
		{name: "pins", path: "/v1/pins", methods: once(http.MethodPost, s.postPin)},
		{name: "pin", path: pinPrefix + "{id:[^/]+}", methods: once(http.MethodDelete, s.deletePin)},
		{name: "cluster", path: "/v1/cluster", methods: only(http.MethodGet, s.getCluster)},
		{name: "members", path: "/v1/cluster/members", methods: once(http.MethodPost, s.postMember)},
		{name: "member", path: member, methods: once(http.MethodDelete, s.memberOp(s.deleteMember), "force")},
		{name: "member_promote", path: member + "/promote", methods: once(http.MethodPost, s.memberOp(s.promoteMember))},
		{name: "member_demote", path: member + "/demote", methods: once(http.MethodPost, s.memberOp(s.demoteMember), "force")},
		{name: "transfer", path: "/v1/cluster/transfer", methods: once(http.MethodPost, s.postTransfer)},
		{name: "settings", path: "/v1/cluster/settings", methods: once(http.MethodPut, s.putSettings)},
		{name: "status", path: "/v1/status", methods: only(http.MethodGet, s.getStatus)},
		{name: "snapshot", path: "/v1/snapshot", methods: only(http.MethodPost, s.postSnapshot)},
		{name: "livez", path: "/livez", methods: only(http.MethodGet, s.probe(s.liveness), "verbose")},
		{name: "readyz", path: "/readyz", methods: only(http.MethodGet, s.probe(s.cfg.Health.Ready), "verbose")},
		{name: "healthz", path: "/healthz", methods: only(http.MethodGet, s.probe(all), "verbose")},
		{name: "openapi", path: "/openapi.yaml", methods: only(http.MethodGet, s.getOpenAPI)},
		{name: "metrics", path: "/metrics", methods: only(http.MethodGet, s.metricsHandler(), "name[]")},
	}
}

// routes makes the handler of everything. mux matches on the path as it was sent
// (UseEncodedPath) and neither cleans nor redirects (SkipClean): a//b and a/../b are
// keys. Methods are not mux's business, since its 405 does not know Allow.
func (s *Server) routes() http.Handler {
	r := mux.NewRouter().SkipClean(true).UseEncodedPath()
	if s.cfg.Peer != nil {
		r.PathPrefix("/internal/").HandlerFunc(s.servePeer)
	}
	for _, rt := range s.routeTable() {
		if get, ok := rt.methods[http.MethodGet]; ok {
			rt.methods[http.MethodHead] = get
		}
		h := s.serveRoute(rt)
		if rt.prefix {
			r.PathPrefix(rt.path).Handler(h)
		} else {
			r.Path(rt.path).Handler(h)
		}
	}
	r.NotFoundHandler = s.serveRoute(route{name: "none"})
	return s.serve(r)
}

// commonParams are taken by every request under /v1.
func commonParams() []string { return []string{"timeout", "timing", "redirect"} }

// serveRoute does what is the same for every route, in the order in which a request
// can be refused most cheaply.
func (s *Server) serveRoute(rt route) http.Handler {
	allow := strings.Join(slices.Sorted(maps.Keys(rt.methods)), ", ")
	allowed := map[string][]string{}
	v1 := strings.HasPrefix(rt.path, "/v1/")
	for method, e := range rt.methods {
		p := slices.Clone(e.params)
		if v1 {
			p = append(p, commonParams()...)
		}
		slices.Sort(p)
		allowed[method] = p
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		x, ok := w.(*exchange)
		if !ok { // serve wraps the router, always
			panic("httpapi: route served without an exchange")
		}
		x.route = rt.name
		if err := x.run(rt, allow, allowed[r.Method]); err != nil {
			x.writeProblem(err)
		}
	})
}

func (x *exchange) run(rt route, allow string, allowed []string) error {
	x.deadline = x.start.Add(x.s.cfg.DefaultTimeout)
	if len(rt.methods) == 0 {
		return kv.Errorf(kv.CodeNotFound, "there is no such resource; the API is described in docs/api.md")
	}
	e, ok := rt.methods[x.r.Method]
	if !ok {
		return &methodError{allow}
	}
	if x.write {
		// A page of another site must not write to a node that its visitor's browser can reach.
		if err := x.s.crossOrigin.Check(x.r); err != nil {
			return kv.Errorf(kv.CodeForbidden, "a browser sent this on behalf of another site")
		}
		if err := x.parseOnce(e.once); err != nil {
			return err
		}
		// There are no times to compare it with, and who sends it wants to be protected.
		if err := x.refuseHeaders("If-Unmodified-Since"); err != nil {
			return err
		}
	}
	p, err := parseParams(x.r.URL.RawQuery, allowed)
	if err != nil {
		return err
	}
	if err := p.checkFlags("timing", "redirect", "previous"); err != nil {
		return err
	}
	x.params = p
	if p.has("timeout") {
		d, err := p.duration("timeout", minTimeout, MaxTimeout)
		if err != nil {
			return err
		}
		x.deadline = x.start.Add(d)
	}
	if err := x.checkForwarded(); err != nil {
		return err
	}
	x.timeout = x.deadline.Sub(x.start)
	ctx, cancel := context.WithDeadline(x.r.Context(), x.deadline)
	defer cancel()
	return e.handle(ctx, x)
}

// metricsHandler serves the registry.
func (s *Server) metricsHandler() handler {
	h := promhttp.HandlerFor(s.cfg.Metrics, promhttp.HandlerOpts{
		Registry: s.cfg.Metrics, EnableOpenMetrics: true, MaxRequestsInFlight: 8,
	})
	return func(_ context.Context, x *exchange) error {
		if err := x.noBody(); err != nil {
			return err
		}
		h.ServeHTTP(x, x.r)
		return nil
	}
}

// servePeer hands a request of another node to the handler it is for. The body keeps
// to the pace and has a bound.
func (s *Server) servePeer(w http.ResponseWriter, r *http.Request) {
	x, ok := w.(*exchange)
	if !ok {
		panic("httpapi: route served without an exchange")
	}
	x.route = "internal"
	if x.body.unread() {
		r = r.WithContext(r.Context()) // a copy: the server keeps its own body
		r.Body = struct {
			io.Reader
			io.Closer
		}{http.MaxBytesReader(x.ResponseWriter, &x.body, MaxPeerBodyBytes), &x.body}
	}
	s.cfg.Peer.ServeHTTP(x, r)
}
