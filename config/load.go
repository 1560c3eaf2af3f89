package config

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	"github.com/spf13/pflag"
)

// Sources are where Load looks, besides the defaults. The zero value has none.
type Sources struct {
	// Flags is a set that AddFlags was called with and that was parsed; nil is none.
	Flags *pflag.FlagSet
	// Environ is the environment as os.Environ returns it; an empty variable counts
	// as one that is not set.
	Environ []string
}

// Loaded is a checked configuration together with where each value came from.
type Loaded struct {
	Config Config
	// Warnings are for the log, a line each: settings that are legal but hardly meant,
	// or were raised to what is safe.
	Warnings []string

	sources map[string]string // by name of setting
}

// defaultSource is the provenance of what nobody set.
const defaultSource = "default"

// given is what one source says about one setting.
type given struct {
	texts  []string
	source string
}

// Load reads every source, lowest first, and checks all of them: flags win over the
// environment, that over the YAML file of --config (or SETT_CONFIG), that over the
// defaults. It reads that one file and nothing else. The error is one line that
// names the setting and its source.
func Load(src Sources) (*Loaded, error) {
	settings := table()
	env, err := fromEnviron(src.Environ, settings)
	if err != nil {
		return nil, err
	}
	file, err := configFile(src.Flags, src.Environ)
	if err != nil {
		return nil, err
	}
	yaml := map[string]given{}
	if file != "" {
		data, err := os.ReadFile(file)
		if err != nil {
			return nil, fmt.Errorf("read the configuration file: %w", err)
		}
		if yaml, err = fromYAML(file, data, settings); err != nil {
			return nil, err
		}
	}

	l := &Loaded{sources: make(map[string]string, len(settings))}
	for i := range settings {
		s := &settings[i]
		l.sources[s.name] = defaultSource
		if s.def != "" {
			if err := s.binding.set(&l.Config, []string{s.def}); err != nil {
				return nil, fmt.Errorf("default of %s: %w", s.name, err)
			}
		}
		layers := make([]given, 0, 3)
		if g, ok := yaml[s.name]; ok {
			layers = append(layers, g)
		}
		if g, ok := env[s.name]; ok {
			layers = append(layers, g)
		}
		if g, ok := fromFlags(src.Flags, s); ok {
			layers = append(layers, g)
		}
		for _, g := range layers {
			if err := s.binding.set(&l.Config, g.texts); err != nil {
				return nil, badValue(s, g, err)
			}
			l.sources[s.name] = g.source
		}
	}
	if err := l.derive(machineAddrs); err != nil {
		return nil, err
	}
	return l, l.check()
}

func badValue(s *setting, g given, err error) error {
	if s.secret {
		return fmt.Errorf("bad value for %s (%s): %w", s.name, g.source, err)
	}
	return fmt.Errorf("bad value %q for %s (%s): %w", strings.Join(g.texts, ","), s.name, g.source, err)
}

// configFile returns the path of the YAML file, "" if there is none.
func configFile(fs *pflag.FlagSet, environ []string) (string, error) {
	if fs != nil {
		if f := fs.Lookup(fileFlag); f != nil && f.Changed {
			if f.Value.String() == "" {
				return "", errors.New("bad value \"\" for --config: want the path of a YAML file")
			}
			return f.Value.String(), nil
		}
	}
	for _, kv := range environ {
		if v, ok := strings.CutPrefix(kv, fileEnv+"="); ok {
			return v, nil
		}
	}
	return "", nil
}

// fromEnviron returns what the environment says, by name of setting. A SETT_
// variable that nobody knows is an error: it is most likely a slip of the pen.
func fromEnviron(environ []string, settings []setting) (map[string]given, error) {
	byEnv := make(map[string]*setting, len(settings))
	names := make([]string, 0, len(settings))
	for i := range settings {
		byEnv[settings[i].env()] = &settings[i]
		names = append(names, settings[i].env())
	}
	found := map[string]given{}
	var unknown []string
	for _, kv := range environ {
		key, text, _ := strings.Cut(kv, "=")
		if !strings.HasPrefix(key, envPrefix) || ignoredVariable(key) {
			continue
		}
		s, ok := byEnv[key]
		if !ok {
			unknown = append(unknown, key)
			continue
		}
		if text != "" {
			found[s.name] = given{texts: []string{text}, source: "env " + key}
		}
	}
	if len(unknown) > 0 {
		slices.Sort(unknown)
		return nil, fmt.Errorf("unknown setting %s in the environment%s; unset it (on Kubernetes, enableServiceLinks: false keeps the variables of other services out)",
			unknown[0], suggestion(unknown[0], names))
	}
	return found, nil
}

func ignoredVariable(key string) bool {
	if key == fileEnv || slices.Contains(ClientVariables, key) {
		return true
	}
	return strings.HasPrefix(key, eventPrefix) || slices.ContainsFunc(kubernetesPrefixes, func(p string) bool { return strings.HasPrefix(key, p) })
}

// check looks at settings that must fit each other. Each message names the setting
// to change and where its value came from.
func (l *Loaded) check() error {
	c := &l.Config
	switch {
	case c.BootstrapExpect == 1 && c.Nonvoter:
		return l.conflict("nonvoter", "cannot go with bootstrap-expect 1: a cluster of one needs its one voter")
	case c.Badger.NumLevelZeroTablesStall <= c.Badger.NumLevelZeroTables:
		return l.conflict("badger.num_level0_tables_stall", "must be more than badger.num_level0_tables (%d)", c.Badger.NumLevelZeroTables)
	case c.Badger.Compression != "none" && c.Badger.BlockCacheBytes == 0:
		return l.conflict("badger.compression", "needs badger.block_cache_size, for example 32MiB")
	case c.Badger.BlockCacheBytes != 0 && c.Badger.BlockCacheBytes < minCacheBytes:
		return l.conflict("badger.block_cache_size", "must be 0 or at least %s", shortSize(minCacheBytes))
	case c.Badger.IndexCacheBytes != 0 && c.Badger.IndexCacheBytes < minCacheBytes:
		return l.conflict("badger.index_cache_size", "must be 0 or at least %s", shortSize(minCacheBytes))
	}
	if c.MaxValueBytes > c.MaxRequestBytes {
		l.warn("max-value-bytes", "is more than max-request-bytes (%d): no request can carry so big a value", c.MaxRequestBytes)
	}
	if uint64(c.MaxInflightBytes) < c.MaxRequestBytes {
		l.warn("max-inflight-bytes", "is less than max-request-bytes (%d): the biggest requests can never be admitted", c.MaxRequestBytes)
	}
	if asked := c.Badger.ValueThreshold; asked < MinValueThreshold {
		l.warn("badger.value_threshold", "%d is raised to %d: values stay inside the LSM tree, where they are safe", asked, MinValueThreshold)
		l.sources["badger.value_threshold"] += fmt.Sprintf(", raised from %d", asked)
		c.Badger.ValueThreshold = MinValueThreshold
	}
	return nil
}

func (l *Loaded) warn(name, format string, args ...any) {
	l.Warnings = append(l.Warnings, fmt.Sprintf("%s (%s) %s", name, l.sources[name], fmt.Sprintf(format, args...)))
}

// minCacheBytes: Badger's caches crash at sizes that leave no room for counters.
const minCacheBytes = 1 << 20

func (l *Loaded) conflict(name, format string, args ...any) error {
	return fmt.Errorf("%s (%s) %s", name, l.sources[name], fmt.Sprintf(format, args...))
}
