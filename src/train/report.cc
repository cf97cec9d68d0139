#include "train/report.h"

#include <nlohmann/json.hpp>
#include <set>
#include <string>

namespace fathom {
namespace {

using Json = nlohmann::ordered_json;

constexpr size_t kMaxPoints = 2000;  // of a curve; longer runs are thinned

constexpr const char* kHead = R"html(<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width,initial-scale=1">
<title>fathom training report</title>
<style>
:root{color-scheme:light dark;--bg:#fff;--fg:#1b1f24;--dim:#5c6570;--line:#dfe3e8;--card:#f7f8fa;--a:#1f6feb;--b:#c2410c;--c:#15803d}
@media(prefers-color-scheme:dark){:root{--bg:#0f1318;--fg:#e6e9ed;--dim:#9aa4b0;--line:#2b323b;--card:#171c23;--a:#6ea8ff;--b:#fb923c;--c:#4ade80}}
body{margin:0 auto;max-width:1080px;padding:24px;background:var(--bg);color:var(--fg);font:15px/1.5 system-ui,sans-serif}
h1{font-size:24px;margin:0 0 4px}h2{font-size:16px;margin:0 0 8px}p{color:var(--dim);margin:0 0 16px}
.cards{display:grid;grid-template-columns:repeat(auto-fit,minmax(150px,1fr));gap:12px;margin:16px 0}
.card,figure,details{background:var(--card);border:1px solid var(--line);border-radius:8px;padding:12px 16px;margin:0}
.card b{display:block;font-size:22px;font-variant-numeric:tabular-nums}.card span{color:var(--dim);font-size:13px}
.grid{display:grid;grid-template-columns:repeat(auto-fit,minmax(440px,1fr));gap:16px;margin:16px 0}
@media(max-width:520px){.grid{grid-template-columns:1fr}}
.wide{grid-column:1/-1}svg{width:100%;height:auto;display:block}svg text{fill:var(--dim);font-size:11px}
.legend{font-size:13px;color:var(--dim)}.legend i{display:inline-block;width:14px;height:3px;margin:0 6px 3px 12px}
table{border-collapse:collapse;font-size:13px;width:100%}td,th{text-align:left;padding:3px 12px 3px 0;border-bottom:1px solid var(--line);font-weight:400}
pre{white-space:pre-wrap;overflow-wrap:anywhere;font-size:13px;margin:6px 0}summary{cursor:pointer;font-weight:600}
.point{font-variant-numeric:tabular-nums;color:var(--dim);font-size:13px;min-height:20px}
</style></head><body>
<main><h1>Training report</h1><p id="summary"></p><div class="cards" id="cards"></div><div class="grid" id="charts"></div>
<div class="grid"><details open class="wide"><summary>Samples</summary><div id="samples"></div></details>
<details class="wide"><summary>Configuration</summary><table id="settings"></table></details></div></main>
<script type="application/json" id="data">)html";

constexpr const char* kScript = R"html(</script>
<script>
'use strict';
const data=JSON.parse(document.getElementById('data').textContent),steps=data.steps;
const make=(tag,parent,text,attributes)=>{const e=document.createElement(tag);if(text!==undefined)e.textContent=text;
  for(const k in attributes||{})e.setAttribute(k,attributes[k]);parent.append(e);return e};
const svgNode=(tag,parent,attributes,text)=>{const e=document.createElementNS('http://www.w3.org/2000/svg',tag);
  for(const k in attributes)e.setAttribute(k,attributes[k]);if(text!==undefined)e.textContent=text;parent.append(e);return e};
const format=v=>v===0?'0':Math.abs(v)>=1e4||Math.abs(v)<1e-3?v.toExponential(1):String(+v.toPrecision(4));
// About n round numbers between low and high.
const ticks=(low,high,n)=>{const raw=(high-low)/n,power=10**Math.floor(Math.log10(raw)),step=power*[1,2,5,10].find(m=>m*power>=raw),all=[];
  for(let i=Math.ceil(low/step-1e-9);i*step<=high+step*1e-9;++i)all.push(+(i*step).toPrecision(12));return all};
const L=52,R=10,T=10,B=26;
function chart(title,series,wide){
  const W=wide?1000:480,H=wide?320:240;
  const all=series.flatMap(s=>s.points.map(p=>p[1])).filter(Number.isFinite);if(!all.length)return;
  const sorted=[...all].sort((a,b)=>a-b),cut=sorted[Math.floor(sorted.length*.995)];
  let low=sorted[0],high=Math.max(cut,low);if(high-low<1e-12){low-=Math.abs(low)*.1+1e-9;high+=Math.abs(high)*.1+1e-9}
  const first=series[0].points[0][0],end=Math.max(...series.map(s=>s.points[s.points.length-1][0]),first+1);
  const x=s=>L+(s-first)/(end-first)*(W-L-R),y=v=>T+(1-(Math.min(v,high)-low)/(high-low))*(H-T-B);
  const figure=make('figure',document.getElementById('charts'));if(wide)figure.className='wide';make('h2',figure,title);
  const lastOf=s=>format(s.points[s.points.length-1][1]);
  const svg=svgNode('svg',figure,{viewBox:`0 0 ${W} ${H}`,role:'img','aria-label':title+': '+series.map(s=>s.name+' ends at '+lastOf(s)).join(', ')});
  for(const v of ticks(low,high,5)){svgNode('line',svg,{x1:L,x2:W-R,y1:y(v),y2:y(v),stroke:'var(--line)'});
    svgNode('text',svg,{x:L-6,y:y(v)+4,'text-anchor':'end'},format(v))}
  for(const s of ticks(first,end,wide?10:5))if(Number.isInteger(s)){svgNode('line',svg,{x1:x(s),x2:x(s),y1:H-B,y2:H-B+4,stroke:'var(--dim)'});
    svgNode('text',svg,{x:x(s),y:H-8,'text-anchor':x(s)>W-R-16?'end':'middle'},s)}
  for(const s of series)svgNode('polyline',svg,{fill:'none',stroke:s.color,'stroke-width':1.5,'stroke-opacity':s.faint?.35:1,
    points:s.points.map(p=>x(p[0]).toFixed(1)+','+y(p[1]).toFixed(1)).join(' ')});
  const legend=make('div',figure);legend.className='legend';
  for(const s of series){make('i',legend,'',{style:'background:'+s.color+(s.faint?';opacity:.35':'')});legend.append(s.name)}
  const point=make('div',figure);point.className='point';
  svg.addEventListener('pointermove',e=>{const box=svg.getBoundingClientRect(),at=first+((e.clientX-box.left)/box.width*W-L)/(W-L-R)*(end-first);
    point.textContent=series.map(s=>{let best=s.points[0];for(const p of s.points)if(Math.abs(p[0]-at)<Math.abs(best[0]-at))best=p;
      return `step ${best[0]} ${s.name} ${format(best[1])}`}).join('   ')});
}
const column=key=>steps.filter(s=>s[key]!=null&&!s.skipped).map(s=>[s.step,s[key]]);
const smooth=points=>{let m=0;return points.map(([s,v],i)=>[s,m+=Math.max(.05,1/(i+1))*(v-m)])};
const loss=column('loss'),mtp=column('mtp_loss'),val=column('val_loss');
const losses=[{name:'train',color:'var(--a)',points:loss,faint:true},{name:'train, smoothed',color:'var(--a)',points:smooth(loss)}];
if(mtp.length)losses.push({name:'MTP, smoothed',color:'var(--c)',points:smooth(mtp)});
if(val.length)losses.push({name:'validation',color:'var(--b)',points:val});
const averaged=column('val_loss_average');if(averaged.length)losses.push({name:'validation, averaged weights',color:'var(--fg)',points:averaged});
const others=[...new Set(steps.flatMap(Object.keys))].filter(k=>data.others.includes(k)),titled=k=>k[0].toUpperCase()+k.slice(1).replaceAll('_',' ');
const rewards=column('reward');  // of reinforcement learning, whose loss is no nats a token
if(rewards.length){const series=[{name:'of a step',color:'var(--a)',points:rewards,faint:true},{name:'smoothed',color:'var(--a)',points:smooth(rewards)}];
  for(const [key,color] of [['val_reward','var(--b)'],['val_exact','var(--c)']])if(column(key).length)series.push({name:titled(key),color,points:column(key)});
  chart('Reward',series,true)}
if(loss.length)chart(rewards.length?'Loss of the policy':'Loss (nats a token)',losses,true);
for(const key of others)if(!['epoch','reward','val_reward','val_exact'].includes(key)){const points=column(key);chart(titled(key),[{name:'of a step',color:'var(--a)',points,faint:true},{name:'smoothed',color:'var(--a)',points:smooth(points)}])}
for(const [key,title] of [['lr','Learning rate'],['grad_norm','Gradient norm'],['tokens_per_s','Tokens a second'],['mfu','Model FLOPs utilization']]){
  const points=column(key);if(points.length)chart(title,[{name:key,color:'var(--a)',points}])}
const kl=column('indexer_loss'),recall=column('indexer_recall');
if(kl.length)chart('Indexer: KL to the attention (nats a token and layer)',[{name:'of a step',color:'var(--a)',points:kl,faint:true},{name:'smoothed',color:'var(--a)',points:smooth(kl)}]);
if(recall.length)chart('Indexer: attention that its choice holds, as a part of the best choice',[{name:'of a step',color:'var(--a)',points:recall,faint:true},{name:'smoothed',color:'var(--a)',points:smooth(recall)}]);
const violation=column('max_violation'),whole=column('val_max_violation');
if(violation.some(p=>p[1]>0)){const series=[{name:'of a step',color:'var(--a)',points:violation,faint:true},{name:'smoothed',color:'var(--a)',points:smooth(violation)}];
  if(whole.length)series.push({name:'over the validation text',color:'var(--b)',points:whole});
  chart('Expert load: MaxVio of the worst layer (greatest load / mean - 1)',series)}
const ranged=steps.filter(s=>s.bias_range&&s.bias_range.length);
if(ranged.length)chart('Correction biases of all layers',['least','greatest'].map((name,end)=>({name,color:end?'var(--b)':'var(--a)',
  points:ranged.map(s=>[s.step,Math[end?'max':'min'](...s.bias_range.map(r=>r[end]))])})));
const loads=steps.filter(s=>s.expert_load&&s.expert_load.length);
if(loads.length){
  const layers=loads[0].expert_load.length,experts=loads[0].expert_load[0].length,row=Math.max(1,Math.min(8,Math.floor(160/experts)));
  const height=layers*(experts*row+10)+20,cell=(960-60)/loads.length;
  const figure=make('figure',document.getElementById('charts'));figure.className='wide';
  make('h2',figure,'Expert load over time (one band an MoE layer, one row an expert, 1 is the mean)');
  const svg=svgNode('svg',figure,{viewBox:`0 0 960 ${height}`,role:'img','aria-label':`Load of ${experts} experts in ${layers} layers over ${loads.length} moments`});
  for(let l=0;l<layers;++l){const top=l*(experts*row+10);svgNode('text',svg,{x:0,y:top+experts*row/2+4},'MoE '+(l+1));
    loads.forEach((s,i)=>{const counts=s.expert_load[l];if(!counts)return;const mean=counts.reduce((a,b)=>a+b,0)/experts||1;
      counts.forEach((c,e)=>{const v=c/mean,strength=Math.min(1,Math.abs(v-1));
        const rect=svgNode('rect',svg,{x:60+i*cell,y:top+e*row,width:cell+.3,height:row+.2,fill:v>1?'var(--b)':'var(--a)','fill-opacity':strength.toFixed(2)});
        svgNode('title',rect,{},`step ${s.step}, expert ${e}: ${v.toFixed(2)} of the mean`)})})}
  svgNode('text',svg,{x:60,y:height-6},'step '+loads[0].step);svgNode('text',svg,{x:960,y:height-6,'text-anchor':'end'},'step '+loads[loads.length-1].step);
  const legend=make('div',figure);legend.className='legend';
  for(const [color,name] of [['var(--b)','above the mean'],['var(--a)','below the mean']]){make('i',legend,'',{style:'background:'+color});legend.append(name)}
}
const last=steps[steps.length-1]||{},best=val.length?Math.min(...val.map(p=>p[1])):null;
document.getElementById('summary').textContent=`${data.parameters.toLocaleString()} parameters, ${data.active.toLocaleString()} active a token`;
const median=a=>a.length?[...a].sort((p,q)=>p-q)[a.length>>1]:0;
for(const [name,value] of [['steps',last.step],['tokens',(last.tokens||0).toLocaleString()],['training loss',loss.length?format(smooth(loss).pop()[1]):'-'],
  ['validation loss',val.length?format(val[val.length-1][1]):'-'],['best validation',best===null?'-':format(best)],['tokens a second',Math.round(median(column('tokens_per_s').map(p=>p[1])))]]){
  const card=make('div',document.getElementById('cards'));card.className='card';make('b',card,value);make('span',card,name)}
const samples=steps.filter(s=>s.sample!==undefined),box=document.getElementById('samples');
if(!samples.length)make('p',box,'None were drawn (--sample-every).');
for(const s of samples.slice(-12).reverse()){make('b',box,'step '+s.step);make('pre',box,s.sample)}
for(const [k,v] of Object.entries(data.settings)){const r=make('tr',document.getElementById('settings'));make('th',r,k,{scope:'row'});make('td',r,v)}
</script></body></html>
)html";

// "</script>" and "<!--" inside a script element would end it: '<' stands as its escape.
std::string for_script(const Json& json) {
  std::string out;
  for (const char c : json.dump(-1, ' ', false, Json::error_handler_t::replace)) {
    if (c == '<') {
      out += "\\u003c";
    } else {
      out += c;
    }
  }
  return out;
}

Json settings_of(const ModelConfig& c, const Settings& settings) {
  Json all{{"model", c.model_type},
           {"layers", std::to_string(c.num_hidden_layers)},
           {"hidden size", std::to_string(c.hidden_size)},
           {"attention heads", std::to_string(c.num_attention_heads)},
           {"latent rank", std::to_string(c.kv_lora_rank)},
           {"routed experts", std::to_string(c.router.n_routed_experts)},
           {"experts a token", std::to_string(c.router.num_experts_per_tok)},
           {"shared experts", std::to_string(c.n_shared_experts)},
           {"MTP modules", std::to_string(c.num_nextn_predict_layers)}};
  for (const auto& [name, value] : settings) {
    const bool is_option = name.find(' ') == std::string::npos;  // others say what they are of
    all[(is_option ? "--" : "") + name] = value;
  }
  return all;
}

}  // namespace

std::string training_report(const std::vector<StepMetrics>& metrics, const ModelConfig& config,
                            const Settings& settings) {
  const size_t stride = (metrics.size() + kMaxPoints - 1) / kMaxPoints;
  Json steps = Json::array();
  std::set<std::string> others;  // names of what the run's source tells
  for (const StepMetrics& m : metrics) {
    for (const auto& [name, value] : m.of_source) others.insert(name);
  }
  for (size_t i = 0; i < metrics.size(); ++i) {
    const StepMetrics& m = metrics[i];
    const bool telling = m.val_loss || m.sample || !m.expert_load.empty() || i + 1 == metrics.size();
    if (i % stride == 0 || telling) steps.push_back(Json::parse(to_json_line(m)));
  }
  const ParameterCount count = count_parameters(config);
  const Json data{{"parameters", count.total},
                  {"active", count.active},
                  {"settings", settings_of(config, settings)},
                  {"others", others},
                  {"steps", std::move(steps)}};
  return kHead + for_script(data) + kScript;
}

}  // namespace fathom
