// infer
namespace fathom {}
