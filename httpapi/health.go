package httpapi

import (
	"context"
	"net/http"
	"strings"

	"github.com/settkv/sett/kv"
)

// liveness is the check of /livez: a node that isn't alive should be restarted.
func (s *Server) liveness() []kv.Check {
	if err := s.cfg.Health.Live(); err != nil {
		e := kv.AsError(err)
		detail := e.Msg
		if e.Code == kv.CodeInternal {
			detail = err.Error() // an operator's page: the cause is what it is for
		}
		return []kv.Check{{Name: "live", Detail: detail}}
	}
	return []kv.Check{{Name: "live", OK: true}}
}

// probe serves /livez, /readyz and /healthz: 200 and "ok", or 503 with the causes.
// With verbose every check has a line.
func (s *Server) probe(checks func() []kv.Check) handler {
	return func(_ context.Context, x *exchange) error {
		if err := x.params.checkFlags("verbose"); err != nil {
			return err
		}
		if err := x.noBody(); err != nil {
			return err
		}
		status := http.StatusOK
		var lines, failed []string
		for _, c := range checks() {
			line := "[+]" + c.Name + " ok"
			if !c.OK {
				status = http.StatusServiceUnavailable
				line = "[-]" + c.Name + " failed"
				cause := c.Name
				if c.Detail != "" {
					line += ": " + c.Detail
					cause += ": " + c.Detail
				}
				failed = append(failed, cause)
			} else if c.Detail != "" {
				line += ": " + c.Detail
			}
			lines = append(lines, line)
		}
		h := x.Header()
		h.Set("Cache-Control", "no-store")
		switch {
		case x.params.flag("verbose"):
			if status != http.StatusOK {
				h.Set("Retry-After", "1")
			}
			return x.writeBytes(status, "text/plain; charset=utf-8", []byte(strings.Join(lines, "\n")+"\n"))
		case status != http.StatusOK:
			return kv.Errorf(kv.CodeNotReady, "%s", strings.Join(failed, "; "))
		}
		return x.writeBytes(http.StatusOK, "text/plain; charset=utf-8", []byte("ok\n"))
	}
}
