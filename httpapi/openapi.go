package httpapi

import (
	"context"
	_ "embed"
	"net/http"
)

// openAPI describes the API; a test holds it against the handlers.
//
//go:embed openapi.yaml
var openAPI []byte

// getOpenAPI serves GET /openapi.yaml.
func (s *Server) getOpenAPI(_ context.Context, x *exchange) error {
	if err := x.noBody(); err != nil {
		return err
	}
	return x.writeBytes(http.StatusOK, "application/yaml", openAPI)
}
