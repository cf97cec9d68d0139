// checkpoint
namespace fathom {}
