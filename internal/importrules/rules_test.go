package importrules

const module = "github.com/settkv/sett"

// ours says which of our packages each package may import. Packages are named by
// their folder; everything not listed is forbidden.
var ours = map[string][]string{
	// The top: parse, call, print. kv is there for the codes that become exit codes.
	"cmd/sett": {"node", "client", "config", "snapshot", "kv"},
	// The wiring.
	"node": {"kv", "config", "engine", "fsm", "snapshot", "raftstore", "consensus", "cluster", "relay", "httpapi"},

	// Side by side; none knows another.
	"httpapi": {"kv"},
	"client":  {"kv"},
	"cluster": {"kv"},
	"relay":   {"kv"},
	"config":  {"kv"},

	"consensus": {"kv", "raftstore"},
	"fsm":       {"kv", "engine", "snapshot"},
	"snapshot":  {"kv", "engine"},

	// The bottom. badgerkit is what the two doors to Badger share.
	"engine":             {"internal/badgerkit"},
	"raftstore":          {"internal/badgerkit"},
	"internal/badgerkit": {},
	"kv":                 {},

	// A whole cluster in one process, for its tests; the network that breaks on order.
	"internal/testcluster": {"node", "config", "cluster", "consensus", "internal/faultnet", "internal/histories"},
	"internal/faultnet":    {},
	"internal/histories":   {},

	// Tests from outside and their tools: they see what a user sees.
	"internal/blackbox":    {},
	"internal/faulttest":   {"internal/blackbox", "internal/histories"},
	"internal/importrules": {},
	"scripts/bench":        {"internal/blackbox"},
	"scripts/smoke":        {"internal/blackbox"},
}

// oursInTests lists what the test files of a package may import beyond its row.
var oursInTests = map[string][]string{
	"consensus":            {"internal/faultnet"},
	"internal/testcluster": {"kv", "fsm", "snapshot"},
}

// reach is how far a library may come into a package.
type reach int

const (
	anywhere reach = iota + 1
	// oneFile: one file of the package is the adapter, the rest does not know it.
	oneFile
	// inTests: the package's test files only.
	inTests
)

// everywhere stands for every package in a door.
const everywhere = "*"

// doors says through which packages each third-party library comes in. The
// longest import path that fits counts. A library without a door is forbidden.
var doors = map[string]map[string]reach{
	"github.com/hashicorp/raft": {
		"raftstore": anywhere, "consensus": anywhere, "fsm": oneFile, "snapshot": oneFile,
	},
	"github.com/BBVA/raft-badger":        {"raftstore": anywhere},
	"github.com/dgraph-io/badger/v2":     {"engine": anywhere, "raftstore": anywhere, "internal/badgerkit": anywhere},
	"github.com/hashicorp/memberlist":    {"cluster": anywhere},
	"github.com/gorilla/mux":             {"httpapi": anywhere},
	"github.com/go-json-experiment/json": {"httpapi": anywhere},
	"go.yaml.in/yaml":                    {"config": anywhere},
	"github.com/spf13/pflag":             {"config": anywhere},
	"github.com/spf13/cobra":             {"cmd/sett": anywhere},

	"github.com/prometheus/client_golang": {
		"httpapi": anywhere, "consensus": anywhere, "cluster": anywhere, "node": anywhere,
	},
	// raft's logger; consensus has the bridge to log/slog.
	"github.com/hashicorp/go-hclog": {"consensus": anywhere, "raftstore": inTests},
	"github.com/cenkalti/backoff":   {"client": anywhere},
	"github.com/google/uuid":        {"cluster": anywhere, "node": anywhere},
	"github.com/gofrs/flock":        {"node": anywhere, "cmd/sett": oneFile},
	// What a transaction touches, in order, for its ranges.
	"github.com/google/btree": {"fsm": anywhere},
	// Strict JSON: no duplicate names, no invalid UTF-8, no unknown members.
	"golang.org/x/sys":               {"snapshot": anywhere, "internal/badgerkit": anywhere},
	"github.com/schollz/progressbar": {"cmd/sett": oneFile},

	"github.com/hashicorp/go-metrics":       {"consensus": inTests},
	"github.com/pb33f/libopenapi":           {"httpapi": inTests},
	"github.com/pb33f/libopenapi-validator": {"httpapi": inTests},
	"github.com/prometheus/client_model/go": {everywhere: inTests},
	"pgregory.net/rapid":                    {everywhere: inTests},
	"github.com/anishathalye/porcupine":     {"internal/histories": anywhere, "internal/testcluster": inTests, "internal/faulttest": inTests},
}

// banned parts of the standard library, and why. A package may be excepted.
var banned = map[string]ban{
	// The two bridges give raft's and memberlist's loggers what they ask for.
	"log":            {why: "log/slog is passed in; nothing is global", except: []string{"cluster", "consensus"}},
	"net/http/pprof": {why: "it registers itself with http.DefaultServeMux"},
	"expvar":         {why: "it registers itself with http.DefaultServeMux"},
}

type ban struct {
	why    string
	except []string
}

// impure is forbidden in the state machine (outside its tests): it is a pure
// function of its state and the log.
var impure = map[string][]string{
	"fsm": {"math/rand/v2", "crypto/rand", "os", "net", "net/http"},
}
